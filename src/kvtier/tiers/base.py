"""The contract of a tier: a place below RAM that keeps blocks.

The methods of a tier block, and any thread may call them at any time. A tier knows nothing of
queues, priorities, deadlines or eviction policies; those belong to `transfer/` and `cache/`. It
raises nothing for an operational fault: each block of a batch has an `Outcome` of its own.
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
    """The result of an operation for one block of a batch."""

    DONE = "done"
    MISSING = "missing"
    """The tier does not hold the block."""
    CORRUPT = "corrupt"
    """The bytes failed verification; the tier has discarded the block."""
    FAILED = "failed"
    """The device or file system refused (EIO, ENOSPC, EACCES, full); a later try may succeed."""


class BlockMove(NamedTuple):
    """The bytes of one block on their way between a tier and a buffer of the caller."""

    key: BlockKey
    buffer: Buffer


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """The properties of a tier that the layers above rely on."""

    name: str
    capacity_blocks: int
    """The most blocks that fit into the tier's bound in bytes."""
    persistent: bool
    """Whether blocks survive the process."""
    io_threads: int
    """The number of threads that can usefully call the tier at once."""
    batch_blocks: int = 1
    """The number of blocks that the tier packs together: the best size of one write."""
    shared: bool = False
    """Whether other processes write to it and clean it as well; then it is a `SharedTier`.

    What this process knows of a shared tier is a part of what the tier holds: `capacity_blocks`
    bounds that part, and removing a block from it does not delete the block.
    """
    recheck_s: float = 2.0
    """How long a shared tier's answer that it lacks a block is believed."""


class StoredBlock(NamedTuple):
    """A block that a tier holds, as `scan` reports it."""

    key: BlockKey
    parent: BlockKey | None


class ScanPage(NamedTuple):
    """One page of a scan. Pass `cursor` to `scan` for the next page; None: this is the last."""

    blocks: list[StoredBlock]
    cursor: int | None


@runtime_checkable
class Tier(Protocol):
    """A place that keeps blocks.

    Every method blocks, may be called from any thread, and never raises for an operational fault.
    """

    @property
    def capabilities(self) -> Capabilities:
        """The tier's properties, which never change."""
        ...

    def contains(self, keys: Sequence[BlockKey]) -> list[bool]:
        """Return for each key whether the tier holds the block.

        Does no I/O where the tier keeps its index in RAM.
        """
        ...

    def read_into(self, moves: Sequence[BlockMove]) -> list[Outcome]:
        """Fill each buffer; DONE means that the payload is whole and verified."""
        ...

    def write_from(
        self, moves: Sequence[BlockMove], parents: Sequence[BlockKey | None]
    ) -> list[Outcome]:
        """Store each block; DONE means that a later read in this process returns these bytes.

        `parents[i]` is the key of the block before `moves[i]` in its prefix, None for the first
        one. `scan` returns it, so that a new process can rebuild the prefix chains. Writing a key
        that the tier holds already is DONE and keeps the old bytes. FAILED where no space is left:
        the caller makes room with `delete` first.
        """
        ...

    def delete(self, keys: Sequence[BlockKey]) -> list[Outcome]:
        """Remove blocks: DONE for each, MISSING where the tier does not hold it."""
        ...

    def scan(self, cursor: int | None = None) -> ScanPage:
        """Return one page of the blocks held, oldest first; None starts a scan."""
        ...

    def close(self) -> None:
        """Flush what is cheap to flush; release threads, descriptors and locks. Idempotent."""
        ...


@runtime_checkable
class SharedTier(Tier, Protocol):
    """A tier that other processes and hosts write to and clean at the same time."""

    def find(self, chain: Sequence[BlockKey]) -> list[Outcome]:
        """Ask the storage which blocks of a prefix chain, given from its first block, it holds.

        DONE; MISSING; CORRUPT where the file of the block is broken; FAILED where the storage did
        not answer. Costs I/O for every block that this process has neither written nor seen. A
        block that was DONE may be gone by the time it is read.
        """
        ...
