"""The contract of a tier: a place below RAM that keeps blocks.

A tier's methods block and may be called from any thread at once. It knows nothing of
queues, priorities, deadlines or eviction policies: `transfer/` and `cache/` own those.
It raises nothing for operational faults; each block has one `Outcome`.
"""

import enum
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

from kvtier.blocks.key import BlockKey

Buffer = npt.NDArray[np.uint8]
"""One arena slot: contiguous, `BlockLayout.slot_bytes` long, aligned to `layout.ALIGNMENT`."""


class Outcome(enum.Enum):
    """What became of one block in a batch."""

    DONE = "done"
    MISSING = "missing"
    """The tier does not hold the block."""
    CORRUPT = "corrupt"
    """The bytes failed verification; the tier has dropped the block."""
    FAILED = "failed"
    """The device or file system refused (EIO, ENOSPC, EACCES, full); try again later."""


class BlockMove(NamedTuple):
    """One block and the memory it is read into or written from."""

    key: BlockKey
    buffer: Buffer


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What the layers above may count on."""

    name: str
    capacity_blocks: int
    """Blocks the tier holds at most within its byte bound."""
    persistent: bool
    """Blocks survive the process."""
    io_threads: int
    """Threads that can usefully call the tier at once."""
    batch_blocks: int = 1
    """Blocks that are best written in one call: what the tier packs together."""
    shared: bool = False
    """Others write to it and clean it, too: it is a `SharedTier`. What this process knows of
    it is a part of what it holds, `capacity_blocks` bounds that part, and forgetting a block
    does not delete it."""
    recheck_s: float = 2.0
    """Of a shared tier: how long its word that it lacks a block is believed."""


class StoredBlock(NamedTuple):
    """A block a tier holds, as `scan` reports it."""

    key: BlockKey
    parent: BlockKey | None


class ScanPage(NamedTuple):
    """One page of a scan. `cursor` continues it; None ends it."""

    blocks: list[StoredBlock]
    cursor: int | None


@runtime_checkable
class Tier(Protocol):
    """Keeps blocks. Every method blocks, is safe from any thread, and never raises for a fault."""

    @property
    def capabilities(self) -> Capabilities:
        """Fixed at construction."""
        ...

    def contains(self, keys: Sequence[BlockKey]) -> list[bool]:
        """Same order as `keys`; no I/O where the tier keeps its index in RAM."""
        ...

    def read_into(self, moves: Sequence[BlockMove]) -> list[Outcome]:
        """Fill each buffer; DONE means the payload is whole and verified."""
        ...

    def write_from(
        self, moves: Sequence[BlockMove], parents: Sequence[BlockKey | None]
    ) -> list[Outcome]:
        """Keep each block; DONE means a later read, in this process, returns these bytes.

        `parents[i]` is the key of the block before `moves[i]` in its prefix, None for the
        first: it comes back from `scan`, so that a new process can rebuild prefix chains.
        Writing a key that is already held is DONE and keeps the old bytes.
        FAILED where no space is left: the caller makes room with `delete` first.
        """
        ...

    def delete(self, keys: Sequence[BlockKey]) -> list[Outcome]:
        """Forget blocks: DONE, or MISSING where there was none."""
        ...

    def scan(self, cursor: int | None = None) -> ScanPage:
        """Blocks held, oldest first, in pages; start with None."""
        ...

    def close(self) -> None:
        """Flush what is cheap to flush, release threads, descriptors and locks. Idempotent."""
        ...


@runtime_checkable
class SharedTier(Tier, Protocol):
    """A tier that other processes and hosts write to and clean at the same time."""

    def find(self, chain: Sequence[BlockKey]) -> list[Outcome]:
        """Ask the storage which blocks of one prefix chain, given from its first block, it holds.

        DONE, MISSING, CORRUPT where what should hold it is broken, or FAILED where there was no
        answer. Costs I/O for what this process has
        neither written nor seen. What was DONE may be gone when it is read.
        """
        ...
