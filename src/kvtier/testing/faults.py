"""A tier that fails on purpose, in every way that a device or a file system does.

It tests how the layers above handle faults, which are listed in `Fault`: slow or hung calls,
partial batches, torn writes, flipped bits, truncated and over-long files, stale listings, errnos,
and a folder that is removed. Not covered, because they are not faults of a tier: kill -9 between
two steps (see the tests of each tier), duplicated or reordered events, clock steps.

`FaultyTier` wraps any tier. A seed and a rate for each fault give a schedule that repeats; `inject`
applies one fault to the next call that it can affect. Like a verifying tier, it keeps a checksum of
what the caller stored and compares it on each read, so torn, flipped and truncated bytes are found
CORRUPT by comparison. `kvtier_bench.faults` injects faults one level lower, into stores and files.

Invariants: wrong bytes are never DONE; no call raises; a block that no fault affected has the inner
tier's outcome.
"""

import enum
import threading
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
import xxhash

from kvtier.blocks.key import BlockKey
from kvtier.clock import Clock, MonotonicClock, seeded
from kvtier.tiers.base import (
    BlockMove,
    Buffer,
    Capabilities,
    Outcome,
    ScanPage,
    SharedTier,
    StoredBlock,
    Tier,
)


class Fault(enum.Enum):
    """A kind of fault. The brackets name the methods that it can affect."""

    SLOW = "slow"
    """[all] The call first sleeps `slow_s` on the clock."""
    HUNG = "hung"
    """[all] The call waits for `release`; the event `hung` is set while one waits."""
    PARTIAL = "partial"
    """[find, read, write, delete] The second half of the batch is not tried and FAILED."""
    TORN_WRITE = "torn_write"
    """[write] DONE, but only the first half of each block's bytes is stored."""
    BIT_FLIP = "bit_flip"
    """[read] One bit of one block of the batch is flipped."""
    TRUNCATED = "truncated"
    """[read] The second half of one block is missing."""
    OVER_LONG = "over_long"
    """[read] One block is shifted by foreign bytes before it."""
    STALE_LISTING = "stale_listing"
    """[contains, find, scan] Recently deleted blocks are listed; reading them is MISSING."""
    NO_SPACE = "ENOSPC"
    """[write] FAILED."""
    IO_ERROR = "EIO"
    """[find, read, write, delete] FAILED."""
    NO_DESCRIPTORS = "EMFILE"
    """[find, read, write] FAILED."""
    NO_PERMISSION = "EACCES"
    """[find, read, write, delete] FAILED."""
    FOLDER_REMOVED = "folder_removed"
    """[all] All blocks are removed: MISSING."""


_ANY = frozenset({"contains", "find", "read", "write", "delete", "scan"})
_ASKING = frozenset({"find", "read", "write", "delete"})
_AFFECTED: dict[Fault, frozenset[str]] = {
    Fault.SLOW: _ANY,
    Fault.HUNG: _ANY,
    Fault.FOLDER_REMOVED: _ANY,
    Fault.PARTIAL: _ASKING,
    Fault.TORN_WRITE: frozenset({"write"}),
    Fault.BIT_FLIP: frozenset({"read"}),
    Fault.TRUNCATED: frozenset({"read"}),
    Fault.OVER_LONG: frozenset({"read"}),
    Fault.STALE_LISTING: frozenset({"contains", "find", "scan"}),
    Fault.NO_SPACE: frozenset({"write"}),
    Fault.IO_ERROR: _ASKING,
    Fault.NO_DESCRIPTORS: frozenset({"find", "read", "write"}),
    Fault.NO_PERMISSION: _ASKING,
}
_REFUSALS = frozenset({Fault.NO_SPACE, Fault.IO_ERROR, Fault.NO_DESCRIPTORS, Fault.NO_PERMISSION})
_RECENT = 64
"""The number of deleted blocks that a stale listing may still show."""
_FOREIGN = 0x5A


class FaultyTier:
    """A `Tier` around `inner` that injects faults.

    Safe from any thread; with one thread, the same seed gives the same run.
    """

    def __init__(
        self,
        inner: Tier,
        *,
        seed: int = 0,
        rates: Mapping[Fault, float] | None = None,
        clock: Clock | None = None,
        slow_s: float = 0.05,
        block_bytes: int | None = None,
    ) -> None:
        """`rates`: the probability of each fault per call. `block_bytes` None: the whole slot."""
        self.capabilities: Capabilities = inner.capabilities
        self.hung = threading.Event()
        self.happened: list[Fault] = []
        self._inner = inner
        self._rng = seeded(seed)
        self._rates = dict(rates or {})
        self._clock = clock or MonotonicClock()
        self._slow_s = slow_s
        self._block_bytes = block_bytes
        self._lock = threading.Lock()
        self._injected: deque[Fault] = deque()
        self._released = threading.Event()
        self._checksums: dict[BlockKey, int] = {}
        self._deleted: deque[BlockKey] = deque(maxlen=_RECENT)

    def inject(self, fault: Fault, count: int = 1) -> None:
        """Apply `fault` to the next `count` calls that it can affect, whatever the rates are."""
        with self._lock:
            self._injected.extend([fault] * count)

    def release(self) -> None:
        """Let every hung call continue, now and later."""
        self._released.set()

    def contains(self, keys: Sequence[BlockKey]) -> list[bool]:
        """Ask the inner tier; a stale listing adds recently deleted blocks."""
        faults = self._apply_faults("contains")
        held = self._inner.contains(keys)
        if Fault.STALE_LISTING in faults:
            return [
                is_held or key in self._deleted for key, is_held in zip(keys, held, strict=True)
            ]
        return held

    def find(self, chain: Sequence[BlockKey]) -> list[Outcome]:
        """Ask the inner tier, which must be shared; a stale listing adds deleted blocks."""
        faults = self._apply_faults("find")
        if faults & _REFUSALS:
            return [Outcome.FAILED] * len(chain)
        assert isinstance(self._inner, SharedTier)
        tried = chain[: len(chain) // 2] if Fault.PARTIAL in faults else chain
        outcomes = self._inner.find(tried)
        if Fault.STALE_LISTING in faults:
            outcomes = [
                Outcome.DONE if key in self._deleted else outcome
                for key, outcome in zip(tried, outcomes, strict=True)
            ]
        return outcomes + [Outcome.FAILED] * (len(chain) - len(tried))

    def read_into(self, moves: Sequence[BlockMove]) -> list[Outcome]:
        """Read from the inner tier; bytes that differ from those written are CORRUPT."""
        faults = self._apply_faults("read")
        if faults & _REFUSALS:
            return [Outcome.FAILED] * len(moves)
        tried = self._tried(moves, faults)
        outcomes = self._inner.read_into(tried)
        done = [move for move, got in zip(tried, outcomes, strict=True) if got is Outcome.DONE]
        self._corrupt_one(done, faults)
        outcomes = [
            self._verified(move) if got is Outcome.DONE else got
            for move, got in zip(tried, outcomes, strict=True)
        ]
        return outcomes + [Outcome.FAILED] * (len(moves) - len(tried))

    def write_from(
        self, moves: Sequence[BlockMove], parents: Sequence[BlockKey | None]
    ) -> list[Outcome]:
        """Write to the inner tier; a torn write is DONE now and CORRUPT when it is read."""
        faults = self._apply_faults("write")
        if faults & _REFUSALS:
            return [Outcome.FAILED] * len(moves)
        tried = self._tried(moves, faults)
        new = [not held for held in self._inner.contains([move.key for move in tried])]
        for move, is_new in zip(tried, new, strict=True):
            if is_new:
                self._checksums[move.key] = self._checksum(move.buffer)
        stored = [self._torn(move) for move in tried] if Fault.TORN_WRITE in faults else tried
        outcomes = self._inner.write_from(stored, parents[: len(tried)])
        return outcomes + [Outcome.FAILED] * (len(moves) - len(tried))

    def delete(self, keys: Sequence[BlockKey]) -> list[Outcome]:
        """Delete from the inner tier."""
        faults = self._apply_faults("delete")
        if faults & _REFUSALS:
            return [Outcome.FAILED] * len(keys)
        tried = keys[: len(keys) // 2] if Fault.PARTIAL in faults else keys
        outcomes = self._inner.delete(tried)
        self._deleted.extend(
            key for key, outcome in zip(tried, outcomes, strict=True) if outcome is Outcome.DONE
        )
        return outcomes + [Outcome.FAILED] * (len(keys) - len(tried))

    def scan(self, cursor: int | None = None) -> ScanPage:
        """Scan the inner tier; a stale listing adds recently deleted blocks to the last page."""
        faults = self._apply_faults("scan")
        page = self._inner.scan(cursor)
        if Fault.STALE_LISTING in faults and page.cursor is None:
            listed = {stored.key for stored in page.blocks}
            lies = [
                StoredBlock(key, None) for key in dict.fromkeys(self._deleted) if key not in listed
            ]
            return ScanPage(page.blocks + lies, None)
        return page

    def close(self) -> None:
        """Release hung calls and close the inner tier."""
        self.release()
        self._inner.close()

    def _apply_faults(self, verb: str) -> set[Fault]:
        """Draw the faults of this call; sleep, hang or remove all blocks if they say so."""
        faults = self._draw(verb)
        if Fault.SLOW in faults:
            self._clock.sleep(self._slow_s)
        if Fault.HUNG in faults:
            self.hung.set()
            self._released.wait()
        if Fault.FOLDER_REMOVED in faults:
            self._remove_all()
        return faults

    def _draw(self, verb: str) -> set[Fault]:
        with self._lock:
            faults = {
                fault
                for fault in Fault
                if fault in self._rates
                and verb in _AFFECTED[fault]
                and self._rng.random() < self._rates[fault]
            }
            for fault in dict.fromkeys(self._injected):
                if verb in _AFFECTED[fault]:
                    self._injected.remove(fault)
                    faults.add(fault)
            self.happened += [fault for fault in Fault if fault in faults]
            return faults

    def _remove_all(self) -> None:
        cursor: int | None = None
        lost: list[BlockKey] = []
        while True:
            page = self._inner.scan(cursor)
            lost += [stored.key for stored in page.blocks]
            if (cursor := page.cursor) is None:
                break
        self._inner.delete(lost)

    def _corrupt_one(self, moves: Sequence[BlockMove], faults: set[Fault]) -> None:
        """Change the bytes of one of the blocks read, as a failing device would."""
        if not moves:
            return
        payload = self._payload(moves[self._rng.randrange(len(moves))].buffer)
        half = len(payload) // 2
        if Fault.BIT_FLIP in faults:
            payload[self._rng.randrange(len(payload))] ^= np.uint8(1 << self._rng.randrange(8))
        if Fault.TRUNCATED in faults:
            payload[half:] = ~payload[half:]
        if Fault.OVER_LONG in faults:
            payload[1:] = payload[:-1].copy()
            payload[0] ^= np.uint8(_FOREIGN)

    def _verified(self, move: BlockMove) -> Outcome:
        """Return DONE if the bytes are those that were written, or were written elsewhere."""
        expected = self._checksums.get(move.key)
        if expected is None or expected == self._checksum(move.buffer):
            return Outcome.DONE
        self._inner.delete([move.key])
        return Outcome.CORRUPT

    def _checksum(self, buffer: Buffer) -> int:
        return xxhash.xxh3_64_intdigest(self._payload(buffer).data)

    def _payload(self, buffer: Buffer) -> Buffer:
        return buffer[: self._block_bytes]

    def _tried(self, moves: Sequence[BlockMove], faults: set[Fault]) -> Sequence[BlockMove]:
        return moves[: len(moves) // 2] if Fault.PARTIAL in faults else moves

    def _torn(self, move: BlockMove) -> BlockMove:
        """Return the move with a copy of its bytes whose second half is wrong."""
        buffer = move.buffer.copy()
        payload = self._payload(buffer)
        half = len(payload) // 2
        payload[half:] = ~payload[half:]
        return BlockMove(move.key, buffer)
