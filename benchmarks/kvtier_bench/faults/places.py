"""The stores that tested tiers are opened on, and the blocks that are written to them.

Blocks are small, and every byte of a block follows from its key, so that any read can be checked on
its own. They form a few chains with common beginnings.
"""

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from kvtier.blocks.checksum import Checksum
from kvtier.blocks.key import BlockKey
from kvtier.blocks.layout import BlockLayout
from kvtier.clock import unique_id
from kvtier.testing.memory_store import MemoryStore
from kvtier.testing.samples import sample_space
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.posix import PosixStore
from kvtier.tiers.shared.reading import aligned_buffer
from kvtier.tiers.shared.store import Store
from kvtier.tiers.shared.tier import StoreTier
from kvtier_bench.faults.faults import Faults
from kvtier_bench.faults.files import FaultyFiles
from kvtier_bench.faults.store import FaultyStore

LAYOUT: Final = BlockLayout(block_bytes=1000, tokens_per_block=16)
SPACE: Final = sample_space(block_bytes=1000)
CHAINS: Final = 12
CHAIN_BLOCKS: Final = 8
KNOWN_BLOCKS: Final = 24
_TRUNK_BLOCKS: Final = 2
_SEGMENT_BLOCKS: Final = 2


def _chain(number: int) -> list[BlockKey]:
    """Return the keys of a chain; chains whose numbers are equal modulo 3 begin alike."""
    names = [
        (number % 3, 0 if depth < _TRUNK_BLOCKS else 1 + number, depth)
        for depth in range(CHAIN_BLOCKS)
    ]
    return [BlockKey(hashlib.sha256(bytes(name)).digest() + bytes(4)) for name in names]


def _slot(key: BlockKey) -> Buffer:
    slot = aligned_buffer(LAYOUT.slot_bytes)
    slot[: LAYOUT.block_bytes] = np.frombuffer(
        hashlib.shake_128(key).digest(LAYOUT.block_bytes), np.uint8
    )
    return slot


CHAIN_KEYS: Final = [_chain(number) for number in range(CHAINS)]
SLOTS: Final = {key: _slot(key) for chain in CHAIN_KEYS for key in chain}


def is_right(key: BlockKey, buffer: Buffer) -> bool:
    """Return True if `buffer` contains the payload of `key`."""
    size = LAYOUT.block_bytes
    return np.array_equal(buffer[:size], SLOTS[key][:size])


class FaultPlace(Protocol):
    """A store with injected faults, on which any number of tiers may be opened."""

    name: str
    faults: Faults

    def open(self) -> StoreTier:
        """Open another tier on the store. Raises OSError and InvalidSettings."""
        ...

    def clean(self) -> None:
        """Remove everything in the store, after all tiers were closed."""
        ...

    @property
    def is_lost(self) -> bool:
        """Whether the store's folder was removed, so that tiers must be opened again."""
        ...


def _tier(place: FaultPlace, store: Store, checksum: Checksum | None) -> StoreTier:
    return StoreTier(
        place.name,
        store,
        LAYOUT,
        SPACE,
        segment_blocks=_SEGMENT_BLOCKS,
        io_threads=2,
        checksum=checksum,
        known_blocks=KNOWN_BLOCKS,
        recheck_s=0.01,
        clock=place.faults.clock,
    )


class FolderPlace:
    """A new folder below `scratch`."""

    name = "folder"

    def __init__(self, scratch: Path, faults: Faults, checksum: Checksum | None = None) -> None:
        self.faults = faults
        self._root = scratch / f"faults-{unique_id()[:12]}"
        self._checksum = checksum

    @property
    def is_lost(self) -> bool:
        """Whether the folder was removed."""
        return not self._root.exists()

    def open(self) -> StoreTier:
        """Open a tier on the folder, which is created if necessary."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        store = PosixStore(
            self._root,
            direct="auto",
            files=FaultyFiles(self.faults, self._root),
            clock=self.faults.clock,
        )
        return _tier(self, store, self._checksum)

    def clean(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._root, ignore_errors=True)


class ObjectPlace:
    """A store of whole objects, in RAM or in a bucket."""

    def __init__(
        self,
        name: str,
        faults: Faults,
        store: Store | None = None,
        checksum: Checksum | None = None,
    ) -> None:
        self.name = name
        self.faults = faults
        self.is_lost = False
        self._inner = store or MemoryStore()
        self._checksum = checksum

    def open(self) -> StoreTier:
        """Open a tier on the same objects."""
        return _tier(self, FaultyStore(self._inner, self.faults), self._checksum)

    def clean(self) -> None:
        """Remove every object that the store permits to remove."""
        with suppress(OSError):
            for entry in self._inner.list("").entries:
                self._inner.remove(entry.name)
