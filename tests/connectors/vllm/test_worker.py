import itertools
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm.v1.kv_offload.base")

import numpy as np
import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, LoadStoreSpec

from kvtier.connectors.vllm.cpu import HostCopier
from kvtier.connectors.vllm.seals import Seals
from kvtier.connectors.vllm.slots import SlotLayout
from kvtier.connectors.vllm.worker import ArenaLoadStoreSpec, CopyWorker
from kvtier.memory.arena import Arena
from tests.cases import case
from tests.connectors.vllm.caches import (
    BLOCKS,
    SHAPES,
    Shape,
    device_spec,
    flat,
    pages,
    scribble,
    snapshot,
)

SLOTS = 12


@dataclass
class Bench:
    """One arena and one worker per rank, each over its own tensors."""

    shape: Shape
    blocks_per_chunk: int = 1
    world_size: int = 1
    workers: list[CopyWorker] = field(default_factory=list)
    caches: list[CanonicalKVCaches] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slice_bytes = self.shape.worker_bytes_per_block * self.blocks_per_chunk
        size = -(-self.slice_bytes * self.world_size // 4096) * 4096
        self.arena = Arena.create(SLOTS, size)
        self.seals = Seals.create(SLOTS, self.world_size)
        for rank in range(self.world_size):
            caches = self.shape.build(seed=rank)
            layout = SlotLayout.from_caches(
                caches,
                blocks_per_chunk=self.blocks_per_chunk,
                slice_bytes=self.slice_bytes,
                rank=rank,
            )
            self.caches.append(caches)
            self.workers.append(CopyWorker(layout, HostCopier(layout, caches)))

    def host(self, slots: list[int]) -> ArenaLoadStoreSpec:
        return ArenaLoadStoreSpec(
            slots,
            arena=self.arena.handle,
            seals=self.seals.handle,
            slice_bytes=self.slice_bytes,
        )

    def finish(self, rank: int, job_ids: set[int]) -> None:
        self.workers[rank].wait(job_ids)
        results = self.workers[rank].get_finished()
        assert {result.job_id for result in results} == job_ids
        assert all(result.success for result in results)

    def close(self) -> None:
        for worker in self.workers:
            worker.shutdown()
        self.caches.clear()
        self.arena.close()
        self.seals.close()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    benches: list[Bench] = []

    def build(*args: object, **kwargs: object) -> Bench:
        benches.append(Bench(*args, **kwargs))  # type: ignore[arg-type]
        return benches[-1]

    yield build
    for one in benches:
        one.close()


ONE = SHAPES["one group, constant stride"]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_store_and_load_change_only_their_targets(
    bench: Callable[..., Bench], shape: Shape
) -> None:
    for blocks_per_chunk, first in itertools.product([1, 3], [0, 1, 2, 5]):
        with case(blocks_per_chunk, first):
            check_round_trip(bench, shape, blocks_per_chunk, first)


def check_round_trip(
    bench: Callable[..., Bench], shape: Shape, blocks_per_chunk: int, first: int
) -> None:
    here = bench(shape, blocks_per_chunk)
    caches, worker = here.caches[0], here.workers[0]
    groups = len(shape.groups)
    stored = [[3, 9, 4, 7], [1, 12]][:groups]
    loaded = [[14, 2, 0, 5], [10, 6]][:groups]
    firsts = [first, first + 1][:groups]
    per_group = [
        -(-(at % blocks_per_chunk + len(blocks)) // blocks_per_chunk)
        for at, blocks in zip(firsts, stored, strict=True)
    ]
    slots = [11, 2, 8, 5, 1, 7][: sum(per_group)]
    sizes = [len(blocks) for blocks in stored]
    expected = [[pages(caches, g, b) for b in blocks] for g, blocks in enumerate(stored)]
    before = snapshot(caches)
    here.arena.array[:] = 0xA5

    worker.submit_store(1, device_spec(flat(stored), sizes, firsts), here.host(slots))
    here.finish(0, {1})
    assert all(map(torch.equal, before, snapshot(caches)))
    untouched = [slot for slot in range(SLOTS) if slot not in slots]
    assert (here.arena.array[untouched] == 0xA5).all()
    assert (here.arena.array[:, here.slice_bytes :] == 0xA5).all()
    assert here.seals.whole(range(SLOTS)).tolist() == [s in slots for s in range(SLOTS)]

    for group, blocks in enumerate(stored):
        for block in blocks:
            scribble(caches, group, block, 0)
    before = snapshot(caches)
    worker.submit_load(2, here.host(slots), device_spec(flat(loaded), sizes, firsts))
    here.finish(0, {2})
    for group, blocks in enumerate(loaded):
        assert [pages(caches, group, block) for block in blocks] == expected[group]
    touched = {block for blocks in loaded for block in blocks}
    others = [block for block in range(BLOCKS) if block not in touched]
    for old, cache in zip(before, caches.tensors, strict=True):
        assert torch.equal(old[others], cache.tensor[others])
        padding = max(
            ref.page_size_bytes for refs in caches.group_data_refs for ref in refs
            if caches.tensors[ref.tensor_idx] is cache
        )  # fmt: skip
        assert torch.equal(old[:, padding:], cache.tensor[:, padding:])


def test_partial_store_keeps_rest_of_slot(bench: Callable[..., Bench]) -> None:
    here = bench(ONE, 3)
    here.arena.array[:] = 0xA5
    here.workers[0].submit_store(1, device_spec([8], [1], [4]), here.host([0]))
    here.finish(0, {1})
    sub_block = 4 * 64
    assert (here.arena.array[0, :sub_block] == 0xA5).all()
    assert here.arena.array[0, sub_block : 2 * sub_block].tobytes() == pages(here.caches[0], 0, 8)
    assert (here.arena.array[0, 2 * sub_block :] == 0xA5).all()


def test_slot_is_whole_after_all_ranks_have_stored(bench: Callable[..., Bench]) -> None:
    here = bench(SHAPES["padded pages"], 3, world_size=2)
    for rank in range(2):
        here.workers[rank].submit_store(1, device_spec([1, 2, 3]), here.host([6]))
        assert not here.seals.whole([6])[0]
        here.finish(rank, {1})
    assert here.seals.whole([6])[0]
    for rank in range(2):
        expected = b"".join(pages(here.caches[rank], 0, block) for block in (1, 2, 3))
        start = rank * here.slice_bytes
        assert here.arena.array[6, start : start + len(expected)].tobytes() == expected
        here.workers[rank].submit_load(2, here.host([6]), device_spec([9, 10, 11]))
        here.finish(rank, {2})
        assert pages(here.caches[rank], 0, 10) == pages(here.caches[rank], 0, 2)


def test_store_and_load_of_same_blocks_keep_their_order(
    bench: Callable[..., Bench],
) -> None:
    here = bench(ONE)
    caches, worker = here.caches[0], here.workers[0]
    first, second = pages(caches, 0, 1), pages(caches, 0, 2)
    jobs = set()
    for turn in range(0, 60, 3):
        # Swap blocks 1 and 2 through slots 0 and 1; reordered jobs would mix them up.
        worker.submit_store(turn, device_spec([1, 2]), here.host([0, 1]))
        worker.submit_load(turn + 1, here.host([1, 0]), device_spec([1, 2]), expedited=turn % 2 > 0)
        worker.submit_load(turn + 2, here.host([5]), device_spec([9]))
        jobs |= {turn, turn + 1, turn + 2}
    here.finish(0, jobs)
    assert (pages(caches, 0, 1), pages(caches, 0, 2)) == (first, second)
    worker.submit_store(100, device_spec([1, 2]), here.host([0, 1]))
    worker.submit_load(101, here.host([1, 0]), device_spec([1, 2]))
    here.finish(0, {100, 101})
    assert (pages(caches, 0, 1), pages(caches, 0, 2)) == (second, first)


def test_wait_returns_after_job_and_results_are_reported_once(bench: Callable[..., Bench]) -> None:
    here = bench(ONE)
    worker = here.workers[0]
    worker.wait({1, 99})
    worker.submit_store(1, device_spec([3]), here.host([4]))
    worker.wait({1})
    assert here.arena.array[4, :256].tobytes() == pages(here.caches[0], 0, 3)
    (result,) = worker.get_finished()
    assert (result.job_id, result.success, result.transfer_size) == (1, True, 256)
    assert worker.get_finished() == []
    worker.wait({1})


def test_rejected_store_is_reported_done_with_broken_seals(
    bench: Callable[..., Bench],
) -> None:
    here = bench(ONE)
    worker = here.workers[0]
    here.seals.seal(0, [4, 5])
    here.seals.break_seals([4, 5])
    assert worker.submit_store(1, device_spec([3]), here.host([4, 5]))
    assert worker.submit_store(2, device_spec([3]), here.host([SLOTS]))
    assert worker.submit_store(3, device_spec([3]), LoadStoreSpec())
    here.finish(0, {1, 2, 3})
    assert here.seals.whole([4, 5]).tolist() == [False, False]


def test_rejected_load_is_reported_failed(bench: Callable[..., Bench]) -> None:
    here = bench(ONE)
    assert here.workers[0].submit_load(1, here.host([-1]), device_spec([3]))
    (result,) = here.workers[0].get_finished()
    assert (result.job_id, result.success) == (1, False)


def test_copy_that_fails_half_way_leaves_seals_broken(
    bench: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    here = bench(ONE)
    worker = here.workers[0]
    worker.submit_store(1, device_spec([3]), here.host([0]))
    here.finish(0, {1})
    here.seals.break_seals([0, 1])
    mapped, _ = worker._attached[here.arena.handle, here.seals.handle]
    whole = mapped.array
    mapped.array = whole[:, :100]
    worker.submit_store(2, device_spec([4, 5]), here.host([0, 1]))
    worker.submit_load(3, here.host([0]), device_spec([9]))
    worker.wait({2, 3})
    outcomes = {result.job_id: result.success for result in worker.get_finished()}
    assert outcomes == {2: True, 3: False}
    assert here.seals.whole([0, 1]).tolist() == [False, False]
    assert "this is a bug; job 2" in caplog.text
    caplog.clear()  # the recorded tracebacks refer to the mapping
    mapped.array = whole


def test_worker_with_other_slice_size_caches_nothing(bench: Callable[..., Bench]) -> None:
    here = bench(ONE)
    spec = here.host([0])
    spec.slice_bytes -= 1
    here.workers[0].submit_store(1, device_spec([3]), spec)
    here.finish(0, {1})
    assert not here.seals.whole([0])[0]


def test_shutdown_is_idempotent_and_leaves_no_thread_or_mapping(
    bench: Callable[..., Bench],
) -> None:
    here = bench(ONE)
    here.workers[0].submit_store(1, device_spec([3]), here.host([0]))
    here.workers[0].shutdown()
    here.workers[0].shutdown()
    assert not [t for t in threading.enumerate() if t.name == "kvtier-copy"]
    with open("/proc/self/maps") as maps:
        # This test's mappings of the arena and the seals; the worker's are gone.
        assert sum("memfd:kvtier-arena" in line for line in maps) == 2


def test_arena_spec_survives_the_way_between_processes() -> None:
    sent = ArenaLoadStoreSpec([3, 1, 2], arena="a", seals="s", slice_bytes=64)
    # As the engine ships it: between its own processes, never from disk or network.
    received = pickle.loads(pickle.dumps(sent))
    assert received.slots.dtype == np.int32
    assert received.slots.tolist() == [3, 1, 2]
    assert (received.arena, received.seals, received.slice_bytes) == ("a", "s", 64)
