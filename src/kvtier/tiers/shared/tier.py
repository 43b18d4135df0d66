"""The shared tier: the contract of `tiers/base.py` on segments in a store that many hosts use.

The order of steps on which all guarantees rest: a write computes the checksums, writes the whole
file under a temporary name, and renames it exclusively; a read verifies the header, reads the
bytes, compares their checksums, and only then returns DONE. Of its own accord the tier
removes only broken files, which go to the quarantine; the evictor bounds and cleans the store.

Invariants: no bytes are DONE that do not match a checksum of a verified header; what another host
does at the same time may cost a miss but never gives wrong bytes; no method raises for a fault.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from kvtier.blocks.checksum import Checksum, Xxh3, checksum_for
from kvtier.blocks.key import BlockKey, KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.clock import Clock, MonotonicClock
from kvtier.errors import Corrupt, InvalidSettings
from kvtier.tiers.base import BlockMove, Capabilities, Outcome, ScanPage, StoredBlock
from kvtier.tiers.faults import FaultLog
from kvtier.tiers.files import DirectIO, SystemCalls
from kvtier.tiers.shared.accesses import AccessJournal
from kvtier.tiers.shared.format import parse_segment_name, segment_name
from kvtier.tiers.shared.manifest import ensure_manifest
from kvtier.tiers.shared.posix import Durability, PosixStore
from kvtier.tiers.shared.reading import BlockLocation, BlockReader, KnownSegments, SegmentHeaders
from kvtier.tiers.shared.store import Store
from kvtier.tiers.shared.writing import SegmentWriter

KNOWN_BLOCKS = 1 << 18
"""The default bound of the blocks that a process knows of."""
_SCAN_FILES = 200
"""The number of segments in a page of a scan."""


class StoreTier:
    """A `SharedTier` over any `Store`. Every method blocks and is safe from any thread.

    At most `segment_blocks` consecutive blocks lie in one file. `is_prefix` says that the
    predecessor of every block of a prefix is in the store as well; then `find` stops at the first
    missing block. `setting` is the setting that names the store. Raises InvalidSettings, and closes
    the store, where the key space cannot be opened.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        layout: BlockLayout,
        space: KeySpace,
        *,
        segment_blocks: int,
        io_threads: int,
        is_prefix: bool = True,
        checksum: Checksum | None = None,
        known_blocks: int = KNOWN_BLOCKS,
        recheck_s: float = 2.0,
        setting: str = "shared.path",
        clock: Clock | None = None,
    ) -> None:
        clock = clock or MonotonicClock()
        checksum = checksum or Xxh3()
        try:
            folder = ensure_manifest(store, space, checksum, setting)
        except OSError as error:
            store.close()
            raise InvalidSettings(
                f"{setting}: cannot be used ({error}); name a place that this user or these "
                "credentials may list and write"
            ) from error
        except BaseException:
            store.close()
            raise
        self._store = store
        self._folder = folder
        self._slot_bytes = layout.slot_bytes
        self._is_prefix = is_prefix
        self._faults = FaultLog(f"{name} tier {folder}", clock)
        self._known = KnownSegments(known_blocks)
        digest = bytes.fromhex(space.digest)
        self._headers = SegmentHeaders(store, folder, checksum, digest, layout.block_bytes)
        self._reader = BlockReader(store, self._headers, self._known, self._faults)
        self._writer = SegmentWriter(
            store, self._headers, self._known, self._faults, segment_blocks
        )
        self._accesses = AccessJournal(store, folder, clock)
        self._pages: dict[int, str] = {}
        self._closed = False
        self._capabilities = Capabilities(
            name=name,
            capacity_blocks=known_blocks,
            persistent=True,
            io_threads=io_threads,
            batch_blocks=segment_blocks,
            shared=True,
            recheck_s=recheck_s,
        )

    @property
    def capabilities(self) -> Capabilities:
        """The tier's properties, which never change."""
        return self._capabilities

    def contains(self, keys: Sequence[BlockKey]) -> list[bool]:
        """Return for each key whether this process knows a segment with the block. No I/O."""
        return [key in self._known for key in keys]

    def find(self, chain: Sequence[BlockKey]) -> list[Outcome]:
        """Find the blocks of a chain; reads one header for each segment that is not known yet."""
        outcomes = [Outcome.MISSING] * len(chain)
        i = 0
        while i < len(chain) and not self._closed:
            location = None
            try:
                location = self._locate(chain[i])
            except OSError as error:
                self._faults.report("find", error)
                outcomes[i:] = [Outcome.FAILED] * (len(chain) - i)
                break
            except Corrupt:
                outcomes[i] = Outcome.CORRUPT
            if location is None:
                if self._is_prefix:
                    break
                i += 1
                continue
            for key in location.segment.keys[location.number :]:
                if i == len(chain) or chain[i] != key:
                    break
                outcomes[i] = Outcome.DONE
                i += 1
        else:
            self._faults.succeeded("find")
        self._flush_accesses()
        return outcomes

    def read_into(self, moves: Sequence[BlockMove]) -> list[Outcome]:
        """Fill the buffers. Neighbors within a segment are read in one call; each is verified."""
        outcomes = [Outcome.MISSING] * len(moves)
        wanted: list[tuple[BlockLocation, int]] = []
        for i, (key, buffer) in enumerate(moves):
            if self._closed or buffer.nbytes != self._slot_bytes:
                outcomes[i] = Outcome.FAILED
                continue
            try:
                location = self._locate(key)
                if location is not None:
                    wanted.append((location, i))
            except OSError as error:
                self._faults.report("read", error)
                outcomes[i] = Outcome.FAILED
            except Corrupt:
                outcomes[i] = Outcome.CORRUPT
        self._reader.read(wanted, moves, outcomes)
        self._note(location for location, i in wanted if outcomes[i] is Outcome.DONE)
        return outcomes

    def write_from(
        self, moves: Sequence[BlockMove], parents: Sequence[BlockKey | None]
    ) -> list[Outcome]:
        """Store blocks. Consecutive blocks of a chain are packed into one file."""
        outcomes = [Outcome.FAILED] * len(moves)
        if not self._closed and all(move.buffer.nbytes == self._slot_bytes for move in moves):
            self._writer.write(moves, parents, outcomes)
            self._flush_accesses()
        return outcomes

    def delete(self, keys: Sequence[BlockKey]) -> list[Outcome]:
        """Remove blocks, together with all blocks that lie in the same file."""
        return [self._delete(key) for key in keys]

    def scan(self, cursor: int | None = None) -> ScanPage:
        """Return a page of the blocks in the store, in the order of names; reads every header."""
        blocks: list[StoredBlock] = []
        after = self._pages.pop(cursor, "") if cursor else ""
        if self._closed:
            return ScanPage([], None)
        try:
            page = self._store.list(f"{self._folder}/blocks", after, _SCAN_FILES)
            for entry in page.entries:
                first = parse_segment_name(entry.name.removeprefix(f"{self._folder}/"))
                blocks += self._stored(first) if first is not None else []
        except OSError as error:
            self._faults.report("scan", error)
            return ScanPage(blocks, None)
        if page.after is None:
            return ScanPage(blocks, None)
        number = (cursor or 0) + 1
        self._pages[number] = page.after
        return ScanPage(blocks, number)

    def close(self) -> None:
        """Flush the access journal and close the store. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            self._accesses.flush()
        except OSError as error:
            self._faults.report("access log", error)
        self._store.close()

    def _stored(self, first: BlockKey) -> list[StoredBlock]:
        try:
            segment = self._headers.load(first)
        except Corrupt:
            return []
        if segment is None:
            return []
        return list(map(StoredBlock, segment.keys, [segment.parent, *segment.keys[:-1]]))

    def _locate(self, key: BlockKey) -> BlockLocation | None:
        """Return where the block lies: in a known segment, or in one that begins with it.

        None where there is neither. Raises Corrupt where that segment is broken, and OSError.
        """
        location = self._known.locate(key)
        if location is not None:
            return location
        segment = self._headers.load(key)
        if segment is None:
            return None
        self._known.add(segment)
        return BlockLocation(segment, 0)

    def _note(self, locations: Iterable[BlockLocation]) -> None:
        for location in locations:
            self._accesses.note(segment_name(location.segment.keys[0]))
        self._flush_accesses()

    def _flush_accesses(self) -> None:
        """Flush the access journal if it is due; every call of the tier ends with it."""
        try:
            self._accesses.flush_if_due()
        except OSError as error:
            self._faults.report("access log", error)

    def _delete(self, key: BlockKey) -> Outcome:
        if self._closed:
            return Outcome.FAILED
        try:
            location = self._locate(key)
            if location is None:
                return Outcome.MISSING
            first = location.segment.keys[0]
            self._known.remove(first)
            removed = self._store.remove(self._headers.name(first))
        except Corrupt:
            return Outcome.MISSING
        except OSError as error:
            self._faults.report("delete", error)
            return Outcome.FAILED
        return Outcome.DONE if removed else Outcome.MISSING


class FolderTier(StoreTier):
    """The shared tier in a folder that every engine mounts: `shared: /mnt/kv`.

    Raises InvalidSettings naming the setting and the fix.
    """

    def __init__(
        self,
        folder: Path,
        layout: BlockLayout,
        space: KeySpace,
        *,
        segment_blocks: int = 1,
        is_prefix: bool = True,
        durability: Durability = "none",
        direct: DirectIO = "auto",
        io_threads: int = 8,
        known_blocks: int = KNOWN_BLOCKS,
        recheck_s: float = 2.0,
        key_file: Path | None = None,
        files: SystemCalls | None = None,
        clock: Clock | None = None,
    ) -> None:
        checksum = checksum_for(key_file)
        store = PosixStore(folder, durability=durability, direct=direct, files=files)
        super().__init__(
            "shared",
            store,
            layout,
            space,
            segment_blocks=segment_blocks,
            io_threads=io_threads,
            is_prefix=is_prefix,
            checksum=checksum,
            known_blocks=known_blocks,
            recheck_s=recheck_s,
            clock=clock,
        )
