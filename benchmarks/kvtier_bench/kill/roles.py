"""The roles of the processes of a kill run.

Writers write chains that other writers write at the same time, and log, each in a file of its own,
the blocks that the tier reported as published. Readers read all the time and check every byte.
Evictors scan and sweep below a bound that is never reached. All use the same `SharedCounters`,
whose memory outlives them. A process ends by itself only after its parent has ended.
"""

import hashlib
import mmap
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from kvtier.blocks.key import BlockKey
from kvtier.blocks.layout import BlockLayout
from kvtier.clock import seeded
from kvtier.evictor.budget import Bounds, Watermarks
from kvtier.evictor.evictor import Evictor
from kvtier.evictor.options import EvictorOptions
from kvtier.tiers.base import BlockMove, Buffer, Outcome
from kvtier.tiers.shared.posix import PosixStore
from kvtier.tiers.shared.reading import aligned_buffer
from kvtier.tiers.shared.tier import FolderTier
from kvtier_bench.micro.parts import SPACE

if TYPE_CHECKING:
    from random import Random  # noqa: TID251  # the type of what `seeded` gives

LAYOUT: Final = BlockLayout(block_bytes=4000, tokens_per_block=16)
CHAIN_BLOCKS: Final = 6
_SEGMENT_BLOCKS: Final = 4
_CONTESTED: Final = 8
"""Writers choose among this many of the newest chains, so that they collide."""
_READS_A_TIER: Final = 200
"""The number of reads before a reader opens its tier anew."""
_OLD_SHARE: Final = 0.3
_BOUND_BYTES: Final = 1 << 40
_LEASE_S: Final = 4.0
_ORPHAN_S: Final = 20.0
_SWEEP_S: Final = 1.0
_PASS_S: Final = 0.25


class SharedCounters:
    """Counters in memory that all processes share.

    Concurrent counts may get lost; the counters with targets are counted by one reader only.
    """

    FIELDS: Final = (
        "chains",
        "done",
        "failed",
        "reads",
        "read_blocks",
        "wrong",
        "corrupt",
        "passes",
    )

    def __init__(self) -> None:
        self._counts = np.frombuffer(mmap.mmap(-1, 8 * len(self.FIELDS)), np.int64)

    def add(self, field: str, count: int = 1) -> None:
        """Add `count` to a counter."""
        self._counts[self.FIELDS.index(field)] += count

    def __getitem__(self, field: str) -> int:
        """Return the value of a counter."""
        return int(self._counts[self.FIELDS.index(field)])


class RoleContext(NamedTuple):
    """The parameters of a process from its start to its kill."""

    folder: Path
    counters: SharedCounters
    number: int
    """The number of the process among all of the run."""
    seed: int
    parent_lives: Callable[[], bool]
    """Returns False after the parent has ended."""


def chain_keys(chain: int) -> list[BlockKey]:
    """Return the keys of a chain's blocks."""
    names = (b"%d/%d" % (chain, depth) for depth in range(CHAIN_BLOCKS))
    return [BlockKey(hashlib.sha256(name).digest() + bytes(4)) for name in names]


def payload(key: BlockKey) -> Buffer:
    """Return the bytes of a block, all of which follow from its key."""
    return np.frombuffer(hashlib.shake_128(key).digest(LAYOUT.block_bytes), np.uint8)


def open_tier(folder: Path) -> FolderTier:
    """Open the shared tier with durability, as an engine does."""
    return FolderTier(
        folder / "kv", LAYOUT, SPACE, segment_blocks=_SEGMENT_BLOCKS, durability="fsync"
    )


def log_path(folder: Path, number: int) -> Path:
    """Return the path of writer `number`'s log: a line has a chain and its published blocks."""
    return folder / f"published-{number}.log"


def write(context: RoleContext) -> None:
    """Publish recent and new chains, and log them."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    log = os.open(log_path(context.folder, context.number), flags, 0o600)
    try:
        with closing(open_tier(context.folder)) as tier:
            rng, room = seeded(context.seed), _room()
            while context.parent_lives():
                _publish(tier, context.counters, rng, room, log)
    finally:
        os.close(log)


def _publish(
    tier: FolderTier, counters: SharedCounters, rng: "Random", room: Buffer, log: int
) -> None:
    """Publish one chain, and then log the blocks that the tier reported as done."""
    counters.add("chains", rng.randrange(2))
    chain = max(0, counters["chains"] - rng.randrange(_CONTESTED))
    keys = chain_keys(chain)[: rng.randint(1, CHAIN_BLOCKS)]
    for i, key in enumerate(keys):
        room[i, : LAYOUT.block_bytes] = payload(key)
    moves = [BlockMove(key, room[i]) for i, key in enumerate(keys)]
    outcomes = tier.write_from(moves, [None, *keys[:-1]])
    done = 0
    while done < len(outcomes) and outcomes[done] is Outcome.DONE:
        done += 1
    counters.add("done", done)
    counters.add("failed", len(keys) - done)
    if done:
        os.write(log, b"%d %d\n" % (chain, done))


def read(context: RoleContext) -> None:
    """Read chains, most often the newest, and check them."""
    rng, counters = seeded(context.seed), context.counters
    room = _room()
    while context.parent_lives():
        with closing(open_tier(context.folder)) as tier:
            for _ in range(_READS_A_TIER):
                newest = counters["chains"]
                chain = max(0, newest - rng.randrange(_CONTESTED))
                if rng.random() < _OLD_SHARE:
                    chain = rng.randrange(newest + 1)
                keys = chain_keys(chain)
                tier.find(keys)
                room[:] = 0xEE
                moves = [BlockMove(key, room[i]) for i, key in enumerate(keys)]
                count(counters, moves, tier.read_into(moves))


def count(counters: SharedCounters, moves: list[BlockMove], outcomes: list[Outcome]) -> None:
    """Count the outcomes of a read; a block is wrong if it is DONE with other bytes."""
    counters.add("reads")
    for move, outcome in zip(moves, outcomes, strict=True):
        counters.add("corrupt", outcome is Outcome.CORRUPT)
        if outcome is Outcome.DONE:
            counters.add("read_blocks")
            right = np.array_equal(move.buffer[: LAYOUT.block_bytes], payload(move.key))
            counters.add("wrong", not right)


def evict(context: RoleContext) -> None:
    """Run an evictor, whose bound is too large to be reached."""
    options = EvictorOptions(
        bounds=Bounds(Watermarks(_BOUND_BYTES, _BOUND_BYTES)),
        orphan_s=_ORPHAN_S,
        sweep_s=_SWEEP_S,
        lease_s=_LEASE_S,
    )
    store = PosixStore(context.folder / "kv", direct="never")
    with closing(store):
        evictor = Evictor(store, options)
        while context.parent_lives():
            evictor.run_once()
            context.counters.add("passes")
            evictor.wait(_PASS_S)


ROLES: Final[Mapping[str, Callable[[RoleContext], None]]] = {
    "writer": write,
    "evictor": evict,
    "reader": read,
}


def _room() -> Buffer:
    return aligned_buffer(CHAIN_BLOCKS * LAYOUT.slot_bytes).reshape(-1, LAYOUT.slot_bytes)
