"""One cell of the matrix: many calls of one operation of a tier under one kind of fault.

Two tiers share a store. The tested one is called under the fault; the other one, as another engine
would, prepares and verifies without faults. Half of the calls run without a fault, so that recovery
is tested as well. Faults that affect only writes (torn writes, a full device) are also active
during the preparation.

Calls that hang go through the transfer engine, which has to open its breaker so that no caller
waits. A scan that hangs must not delay a concurrent read.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import Final, Literal, TypeVar

import numpy as np

from kvtier.blocks.key import BlockKey
from kvtier.clock import MonotonicClock, perf_s
from kvtier.tiers.base import BlockMove, Buffer, Outcome
from kvtier.tiers.shared.reading import aligned_buffer
from kvtier.tiers.shared.tier import StoreTier
from kvtier.transfer.base import Direction, Transfer
from kvtier.transfer.breaker import BreakerState
from kvtier.transfer.engine import TransferEngine
from kvtier_bench.faults.faults import FaultKind
from kvtier_bench.faults.places import CHAIN_KEYS, LAYOUT, SLOTS, FaultPlace
from kvtier_bench.faults.tally import DEADLINE_S, Caller, LoggedErrors, Tally

Verb = Literal["read", "write", "find", "delete", "scan"]
VERBS: Final[tuple[Verb, ...]] = ("read", "write", "find", "delete", "scan")
_WRITES_ONLY: Final = (FaultKind.TORN_WRITE, FaultKind.NO_SPACE)
_RATE: Final = 0.2
_HANG_S: Final = 0.01
_ROUND: Final = 16
_PAGES: Final = 64
_WRITTEN: Final = list(SLOTS)
_Result = TypeVar("_Result")


class Cell:
    """A test of one operation under one kind of fault. Call `run`, then `close`."""

    def __init__(self, place: FaultPlace, verb: Verb, fault: FaultKind, tally: Tally) -> None:
        self._place = place
        self._faults = place.faults
        self._verb = verb
        self._fault = fault
        self._tally = tally
        self._caller = Caller(tally, place.faults.disarm)
        self._room = aligned_buffer(8 * LAYOUT.slot_bytes).reshape(8, LAYOUT.slot_bytes)
        self._ours, self._other = place.open(), place.open()

    def run(self, operations: int) -> None:
        """Make `operations` calls and count their outcomes."""
        if self._fault is FaultKind.HUNG and self._verb != "scan":
            while self._tally.operations < operations:
                self._hang_in_transfers(min(_ROUND, operations - self._tally.operations))
            return
        while self._tally.operations < operations:
            self._tally.operations += 1
            keys = self._some_keys()
            self._prepare(keys)
            if self._fault is FaultKind.HUNG:
                self._hang_in_scan(keys)
                continue
            if self._faults.pick(2):
                self._faults.arm(self._fault, _RATE)
            self._caller.call(partial(self._perform, keys))
            self._faults.disarm()
            self._verify(keys)

    def close(self) -> None:
        """Close both tiers."""
        self._faults.disarm()
        self._caller.call(self._ours.close)
        self._caller.call(self._other.close)
        self._caller.close()

    def _some_keys(self) -> list[BlockKey]:
        """Return the beginning of a random chain, as an engine asks for."""
        chain = CHAIN_KEYS[self._faults.pick(len(CHAIN_KEYS))]
        return chain[: 1 + self._faults.pick(6)]

    def _prepare(self, keys: Sequence[BlockKey]) -> None:
        """Put `keys` into the store or remove them, with or without the tested tier knowing."""
        choice = self._faults.pick(4)
        if choice > 0:
            self._caller.call(partial(self._ours.delete, keys))
        elif self._verb == "write":
            # The tested tier may still list blocks that another engine has removed.
            self._caller.call(partial(self._other.delete, keys))
        is_taken = choice == 3 or self._verb != "write"
        if is_taken:
            self._fill(keys)

    def _fill(self, keys: Sequence[BlockKey]) -> None:
        """Write `keys` with the other tier, or with the tested one if the fault affects writes."""
        writer = self._other
        if self._fault in _WRITES_ONLY:
            writer = self._ours
            self._faults.arm(self._fault, _RATE)
        parents = [None, *keys[:-1]]
        self._caller.call(partial(writer.write_from, _moves(keys), parents))
        self._faults.disarm()

    def _perform(self, keys: Sequence[BlockKey]) -> None:
        """Call the operation on the tested tier."""
        tier, tally = self._ours, self._tally
        if self._verb == "read":
            self._read(tier, keys)
        elif self._verb == "write":
            tally.count(tier.write_from(_moves(keys), [None, *keys[:-1]]), len(keys))
        elif self._verb == "find":
            tally.count(tier.find(keys), len(keys))
        elif self._verb == "delete":
            tally.count(tier.delete(keys), len(keys))
        else:
            self._scan(tier)

    def _read(self, tier: StoreTier, keys: Sequence[BlockKey]) -> None:
        room = self._room if tier is self._ours else self._room.copy()
        moves = self._empty(keys, room)
        outcomes = tier.read_into(moves)
        self._tally.count(outcomes, len(keys))
        self._tally.check_read(moves, outcomes)

    def _scan(self, tier: StoreTier) -> None:
        cursor: int | None = None
        for _ in range(_PAGES):
            page = tier.scan(cursor)
            self._tally.check_listing([stored.key for stored in page.blocks], _WRITTEN)
            self._tally.outcomes["LISTED"] += len(page.blocks)
            if (cursor := page.cursor) is None:
                return
        self._tally.count_failure("a scan does not end")

    def _verify(self, keys: Sequence[BlockKey]) -> None:
        """Check the bytes that the other tier reads, and the bound of the tested tier."""
        known = sum(self._ours.contains(_WRITTEN))
        self._tally.check_bound(known, self._ours.capabilities.capacity_blocks)
        if self._place.is_lost:
            self._reopen()
        moves = self._empty(keys, np.zeros_like(self._room))
        outcomes = self._caller.call(lambda: self._other.read_into(moves))
        self._tally.check_read(moves, outcomes or [])

    def _empty(self, keys: Sequence[BlockKey], room: Buffer) -> list[BlockMove]:
        room[:] = 0xEE
        return [BlockMove(key, room[i]) for i, key in enumerate(keys)]

    def _reopen(self) -> None:
        """Open both tiers again, as engines do when a lost mount comes back empty."""
        for tier in (self._ours, self._other):
            self._caller.call(tier.close)
        self._ours, self._other = self._place.open(), self._place.open()

    # -- hung ------------------------------------------------------------------------------

    def _hang_in_transfers(self, count: int) -> None:
        """Submit `count` transfers of which some hang, and check that no caller waits for them."""
        chosen = [self._some_keys() for _ in range(count)]
        for keys in chosen:
            self._prepare(keys)
        engine = TransferEngine([self._ours], LAYOUT.slot_bytes, 1 << 10, hang_s=_HANG_S)
        self._faults.arm(self._fault, _RATE / 4)
        transfers = [self._transfer(keys) for keys in chosen]
        self._tally.operations += count
        submitted = [each for each in transfers if self._timed(partial(engine.submit, each))]
        self._tally.outcomes["REFUSED"] += count - len(submitted)
        waiting = sum(len(each.keys) for each in submitted)
        waiting = self._await(engine, waiting, hung=True)
        self._faults.disarm()
        self._await(engine, waiting, hung=False)
        if not engine.close(DEADLINE_S):
            self._tally.hangs += 1
        for keys in chosen[:2]:
            self._verify(keys)

    def _transfer(self, keys: list[BlockKey]) -> Transfer:
        direction = Direction(self._verb)
        rows, parents = list(range(len(keys))), [None, *keys[:-1]]
        moves = _moves(keys)
        if direction is Direction.READ:
            room = aligned_buffer(8 * LAYOUT.slot_bytes).reshape(8, LAYOUT.slot_bytes)
            moves = self._empty(keys, room)
        return Transfer(1, direction, rows, keys, moves, parents)

    def _await(self, engine: TransferEngine, waiting: int, *, hung: bool) -> int:
        """Poll until all transfers complete or, with `hung`, until the breaker opens.

        Return the number of blocks that are still waiting.
        """
        clock, end_s = MonotonicClock(), perf_s() + DEADLINE_S
        direction = Direction(self._verb)
        while waiting:
            for done in self._timed(engine.poll):
                waiting -= done.stop - done.start
                self._take(done.transfer, done.start, done.outcomes)
            is_open = engine.breaker(1, direction) is not BreakerState.CLOSED
            if hung and is_open and self._faults.hanging.is_set():
                break
            if perf_s() > end_s:
                self._tally.hangs += 1
                break
            clock.sleep(0.0005)
        return waiting

    def _take(self, transfer: Transfer, start: int, outcomes: list[Outcome] | None) -> None:
        if outcomes is None:
            self._tally.outcomes["CANCELLED"] += 1
            return
        self._tally.outcomes.update(outcome.name for outcome in outcomes)
        if transfer.direction is Direction.READ:
            self._tally.check_read(transfer.moves[start:], outcomes)

    def _timed(self, call: Callable[[], _Result]) -> _Result:
        began_s = perf_s()
        result = call()
        self._tally.hangs += perf_s() - began_s > DEADLINE_S
        return result

    def _hang_in_scan(self, keys: Sequence[BlockKey]) -> None:
        """Let one scan hang; check that a read completes meanwhile, and the scan afterwards."""
        self._faults.arm(self._fault, _RATE, limit=1)
        scanning = Thread(target=self._guarded_scan, daemon=True)
        scanning.start()
        while scanning.is_alive() and not self._faults.hanging.is_set():
            scanning.join(0.0005)
        if self._faults.hanging.is_set():
            self._caller.call(partial(self._read, self._ours, keys))
        self._faults.disarm()
        scanning.join(DEADLINE_S)
        self._tally.hangs += scanning.is_alive()

    def _guarded_scan(self) -> None:
        try:
            self._scan(self._ours)
        except Exception as error:  # no exception may leave the tier
            self._tally.count_failure(repr(error))


def _moves(keys: Sequence[BlockKey]) -> list[BlockMove]:
    return [BlockMove(key, SLOTS[key]) for key in keys]


def run_cell(place: FaultPlace, verb: Verb, fault: FaultKind, operations: int) -> Tally:
    """Run a cell and return its counts; exceptions of the tier are counted, not raised."""
    tally = Tally()
    with LoggedErrors(tally):
        cell = Cell(place, verb, fault, tally)
        try:
            cell.run(operations)
        finally:
            with suppress(OSError):
                cell.close()
    return tally
