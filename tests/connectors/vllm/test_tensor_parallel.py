"""Blocks stored at one tensor-parallel size are loaded at another, in the engine's own layouts.

The expected bytes do not depend on any mapping: they are the heads of the model's KV that a rank
holds.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

pytest.importorskip("vllm.v1.kv_offload.base")

import torch
from vllm.v1.kv_offload.base import GPULoadStoreSpec

from kvtier.blocks.key import KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.connectors.vllm import arrangement, identity
from kvtier.connectors.vllm.cpu import HostCopier
from kvtier.connectors.vllm.seals import Seals
from kvtier.connectors.vllm.slots import copy_pointers
from kvtier.connectors.vllm.worker import ArenaLoadStoreSpec
from kvtier.errors import InvalidSettings
from kvtier.memory.arena import Arena
from kvtier.testing.tiers import key
from kvtier.tiers.base import BlockMove, Outcome
from kvtier.tiers.shared.tier import FolderTier
from tests.cases import case
from tests.connectors.vllm.ranks import DEVICE_BLOCKS, Model, Rank, full, latent, window

PLAIN = Model(heads=4, groups=((full, 3),))
INSIST = {"canonical_layout": True}
MODELS = {
    "tokens outermost": PLAIN,
    "heads outermost": replace(PLAIN, layout="LBHNC"),
    "halves, tokens outermost": replace(PLAIN, is_split=True),
    "halves, heads outermost": replace(PLAIN, is_split=True, layout="LBHNC"),
    "fewer heads than ranks": replace(PLAIN, heads=2),
    "two kinds of attention": Model(heads=4, groups=((full, 2), (window, 3))),
    "latent attention": Model(heads=1, groups=((latent, 3),)),
}
UNASKED = [PLAIN, MODELS["heads outermost"], MODELS["halves, heads outermost"]]
PAIRS = [(a, b) for a in (1, 2, 4) for b in (1, 2, 4)]
SLOTS = 9


class Engine:
    """All ranks of one tensor-parallel size over one arena."""

    def __init__(self, model: Model, tp_size: int, folder: Path, extra: dict) -> None:
        self.model = model
        self.ranks = [Rank(model, tp_size, rank, folder, extra) for rank in range(tp_size)]
        config, vllm = self.ranks[0].config, self.ranks[0].vllm
        self.arrangement = arrangement.choose_arrangement(config, vllm)
        self.layout = BlockLayout(block_bytes=self.arrangement.payload_bytes, tokens_per_block=1)
        self.space = identity.key_space(config, self.layout, self.arrangement, vllm)
        self.arena = Arena.create(SLOTS, self.layout.slot_bytes)
        self.seals = Seals.create(SLOTS, tp_size)
        self.caches = [rank.allocate() for rank in self.ranks]
        self.workers = [
            rank.worker(caches) for rank, caches in zip(self.ranks, self.caches, strict=True)
        ]

    def fill(self, content: dict[str, torch.Tensor]) -> None:
        for rank, caches in zip(self.ranks, self.caches, strict=True):
            rank.fill(caches, content)

    def store(self, blocks: Sequence[int], first: int, group: int, slots: Sequence[int]) -> None:
        """Store device blocks of a group; the first of them is block `first` of its request."""
        self.seals.break_seals(slots)
        for worker in self.workers:
            assert not self.seals.whole(slots).any()
            worker.submit_store(1, self._device(blocks, first, group), self._host(slots))
            worker.wait({1})
            assert all(result.success for result in worker.get_finished())
        assert self.seals.whole(slots).all()

    def load(self, blocks: Sequence[int], first: int, group: int, slots: Sequence[int]) -> None:
        for worker in self.workers:
            worker.submit_load(2, self._host(slots), self._device(blocks, first, group))
            worker.wait({2})
            assert all(result.success for result in worker.get_finished())

    def close(self) -> None:
        for worker in self.workers:
            worker.shutdown()
        self.arena.close()
        self.seals.close()

    def _device(self, blocks: Sequence[int], first: int, group: int) -> GPULoadStoreSpec:
        groups = range(len(self.model.groups))
        return GPULoadStoreSpec(
            list(blocks),
            group_sizes=[len(blocks) * (number == group) for number in groups],
            block_indices=[first * (number == group) for number in groups],
        )

    def _host(self, slots: Sequence[int]) -> ArenaLoadStoreSpec:
        return ArenaLoadStoreSpec(
            slots,
            arena=self.arena.handle,
            seals=self.seals.handle,
            slice_bytes=self.arrangement.slice_bytes,
        )


class Engines:
    """Builds engines over one checkpoint and closes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")
        self._stack = ExitStack()

    def build(self, model: Model, tp_size: int, **extra: object) -> Engine:
        engine = Engine(model, tp_size, self.folder, extra)
        self._stack.callback(engine.close)
        return engine

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Engines]:
    built = Engines(tmp_path)
    yield built
    built.close()


def of_group(content: dict[str, torch.Tensor], group: int) -> dict[str, torch.Tensor]:
    return {name: rows for name, rows in content.items() if name.startswith(f"g{group}.")}


def check_loaded(
    engine: Engine,
    content: dict[str, torch.Tensor],
    stored: Sequence[int],
    loaded: Sequence[int],
) -> None:
    """Assert that every rank holds its heads of the stored blocks, and nothing else changed."""
    others = [block for block in range(DEVICE_BLOCKS) if block not in loaded]
    for rank, caches in zip(engine.ranks, engine.caches, strict=True):
        heads = engine.model.shard(len(engine.ranks), rank.rank)
        for name, rows in content.items():
            found = rank.rows(caches[name])
            assert torch.equal(found[list(loaded)], rows[list(stored)][:, heads]), name
            assert not found[others].any()


@pytest.mark.parametrize(("blocks_per_chunk", "first"), [(1, 0), (3, 0), (3, 2)])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_blocks_stored_at_one_tp_size_load_at_another(
    engines: Engines, model: Model, blocks_per_chunk: int, first: int
) -> None:
    for writers, readers in PAIRS:
        with case(f"{writers} to {readers} ranks"):
            check_pair(engines, model, writers, readers, blocks_per_chunk, first)
        engines.close()


def check_pair(
    engines: Engines, model: Model, writers: int, readers: int, blocks_per_chunk: int, first: int
) -> None:
    writer, reader = (
        engines.build(model, size, blocks_per_chunk=blocks_per_chunk, **INSIST)
        for size in (writers, readers)
    )
    assert writer.space.digest == reader.space.digest
    stored, loaded = [3, 9, 4, 7, 1], [11, 2, 0, 5, 8]
    slots = [6, 2, 8, 0, 1][: -(-(first + len(stored)) // blocks_per_chunk)]
    for group in range(len(model.groups)):
        content = of_group(model.content(), group)
        writer.fill(content)
        writer.arena.array[:] = 0xA5
        writer.store(stored, first, group, slots)
        untouched = [slot for slot in range(SLOTS) if slot not in slots]
        assert (writer.arena.array[untouched] == 0xA5).all()
        reader.arena.array[:] = writer.arena.array
        for caches in reader.caches:
            for cache in caches.values():
                cache.zero_()
        reader.load(loaded, first, group, slots)
        check_loaded(reader, content, stored, loaded)


@pytest.mark.parametrize("model", UNASKED)
def test_plain_attention_is_canonical_without_option(engines: Engines, model: Model) -> None:
    for tp_size in (1, 2, 4):
        with case(tp_size):
            engine, asked = engines.build(model, tp_size), engines.build(model, tp_size, **INSIST)
            assert engine.space == asked.space
            assert engine.space.layout == f"{model.layout} canonical"
            assert (engine.space.world_size, engine.space.tp_size) == (1, 1)
            assert engine.space.block_bytes == engines.build(model, 1).space.block_bytes


@pytest.mark.parametrize(
    ("model", "extra"),
    [
        (PLAIN, {"canonical_layout": False}),
        (replace(PLAIN, layout="BLNHC"), {}),
        (replace(PLAIN, layout="BHLNC"), {}),
        (replace(PLAIN, heads=3), {}),
        (MODELS["two kinds of attention"], {}),
        (MODELS["latent attention"], {}),
    ],
    ids=["disabled", "packed", "packed by heads", "odd heads", "two kinds", "latent"],
)
def test_per_rank_slots_have_a_key_space_per_tp_size(
    engines: Engines, model: Model, extra: dict
) -> None:
    spaces = [engines.build(model, size, **extra).space for size in (1, 2)]
    fields = {line.partition(":")[0] for line in spaces[0].differing(spaces[1])}
    assert {"world_size", "tp_size"} <= fields


def test_per_rank_slots_keep_ranks_in_their_slices(engines: Engines) -> None:
    engine = engines.build(PLAIN, 2, canonical_layout=False)
    content = PLAIN.content()
    engine.fill(content)
    engine.store([3, 5], 0, 0, [1, 0])
    engine.fill({name: torch.zeros_like(rows) for name, rows in content.items()})
    engine.load([8, 9], 0, 0, [1, 0])
    check_loaded(engine, content, [3, 5], [8, 9])


@pytest.mark.parametrize("name", ["fewer heads than ranks", "latent attention"])
def test_ranks_with_equal_bytes_write_equal_shares(engines: Engines, name: str) -> None:
    model = MODELS[name]
    engine = engines.build(model, 4, **INSIST)
    engine.fill(model.content())
    copies = 4 // model.heads
    written = []
    for worker in engine.workers:
        spec = engine._host([0, 1, 2, 3])
        worker.submit_store(1, engine._device([1, 2, 3, 4], 0, 0), spec)
        worker.wait({1})
        (result,) = worker.get_finished()
        written.append(result.transfer_size)
    # Each of the four slots has one copy, and all ranks write the same number of bytes.
    assert written == [4 * engine.layout.block_bytes // model.heads // copies] * 4


def test_swapped_heads_are_detected(engines: Engines) -> None:
    """The check must be able to fail: here two ranks swap their places."""
    writer, reader = engines.build(PLAIN, 2), engines.build(PLAIN, 1)
    content = PLAIN.content()
    writer.fill(content)
    one, two = (cast("HostCopier", worker._copier) for worker in writer.workers)
    one._groups, two._groups = (
        [[run._replace(offset=other.offset) for run, other in zip(*runs, strict=True)]
         for runs in zip(mine, theirs, strict=True)]
        for mine, theirs in ((one._groups, two._groups), (two._groups, one._groups))
    )  # fmt: skip
    writer.store([3], 0, 0, [0])
    reader.arena.array[:] = writer.arena.array
    reader.load([5], 0, 0, [0])
    with pytest.raises(AssertionError, match=r"g0\.l0"):
        check_loaded(reader, content, [3], [5])


def test_worker_without_certified_mapping_does_not_start(engines: Engines) -> None:
    rank = Rank(PLAIN, 2, 1, engines.folder)
    caches = rank.allocate()
    caches["g0.l1"] = caches["g0.l1"].permute(0, 1, 3, 2)
    with pytest.raises(InvalidSettings, match=r'g0\.l1 .*"canonical_layout": false'):
        rank.worker(caches)
    alone = Rank(PLAIN, 1, 0, engines.folder)
    caches = alone.allocate()
    caches["g0.l1"] = caches["g0.l1"].permute(0, 1, 3, 2)
    alone.worker(caches).shutdown()


@pytest.mark.parametrize(("writers", "readers"), [(1, 2), (2, 1), (4, 2)])
def test_folder_written_at_one_tp_size_is_read_at_another(
    engines: Engines, tmp_path: Path, writers: int, readers: int
) -> None:
    model = MODELS["heads outermost"]
    writer, reader = (engines.build(model, size) for size in (writers, readers))
    content = model.content()
    writer.fill(content)
    chain = [key(number) for number in range(3)]
    writer.store([7, 2, 5], 0, 0, [4, 0, 3])

    def moves(engine: Engine, slots: Sequence[int]) -> list[BlockMove]:
        rows = [np.asarray(engine.arena.array[slot]) for slot in slots]
        return [BlockMove(block, row) for block, row in zip(chain, rows, strict=True)]

    def tier(engine: Engine, space: KeySpace) -> FolderTier:
        return FolderTier(tmp_path / "kv", engine.layout, space, segment_blocks=2)

    written = tier(writer, writer.space)
    assert written.write_from(moves(writer, [4, 0, 3]), [None, *chain[:-1]]) == [Outcome.DONE] * 3
    written.close()
    read = tier(reader, reader.space)
    assert read.find(chain) == [Outcome.DONE] * 3
    assert read.read_into(moves(reader, [1, 8, 6])) == [Outcome.DONE] * 3
    read.close()
    reader.load([0, 4, 9], 0, 0, [1, 8, 6])
    check_loaded(reader, content, [7, 2, 5], [0, 4, 9])


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_copy_pointers_agree_with_host_copy(engines: Engines, model: Model) -> None:
    engine = engines.build(model, 4, blocks_per_chunk=2, **INSIST)
    engine.fill(of_group(model.content(), 0))
    engine.arena.array[:] = 0
    engine.store([3, 9, 4], 1, 0, [5, 2])
    room = np.zeros_like(engine.arena.array)
    device = engine._device([3, 9, 4], 1, 0)
    for worker in engine.workers:
        layout = worker._layout
        moves = layout.expand(device.block_ids, device.group_sizes, device.block_indices, [5, 2])
        found = copy_pointers(
            layout, moves, is_store=True, host_address=room.ctypes.data, slot_bytes=room.shape[1]
        )
        for source, target, size in zip(*(array.tolist() for array in found), strict=True):
            ctypes.memmove(target, source, size)
    assert room.any()
    assert np.array_equal(room, engine.arena.array)
