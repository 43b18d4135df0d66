"""The whole cache above a tier under one kind of fault: requests look up, wait, load and save.

It checks what an engine relies on: no call of `TieredCache` raises or takes long, no request waits
past its deadline, and every loaded byte is right. RAM is small, so that loads come from the tier.
After some requests the cache is created anew, as by a new process, with empty RAM and closed
breakers.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import numpy as np

from kvtier import plugins
from kvtier.blocks.key import BlockKey
from kvtier.cache.core import TieredCache
from kvtier.cache.residency import Residency
from kvtier.clock import MonotonicClock, perf_s
from kvtier.index.local import Presence
from kvtier.memory.arena import Arena
from kvtier.tiers.base import BlockMove
from kvtier.transfer.engine import TransferEngine
from kvtier_bench.faults.faults import FaultKind
from kvtier_bench.faults.places import CHAIN_KEYS, LAYOUT, SLOTS, FaultPlace
from kvtier_bench.faults.tally import DEADLINE_S, LoggedErrors, Tally

_RATE: Final = 0.08
_PROMOTE_S: Final = 0.05
_REQUESTS: Final = 30
"""Requests before the cache is created anew."""
_RAM_SLOTS: Final = 16
_PAUSE_S: Final = 0.0005

_Result = TypeVar("_Result")


class _Lifetime:
    """One lifetime of a process: a new cache over a tier that was just opened."""

    def __init__(self, place: FaultPlace, fault: FaultKind, tally: Tally) -> None:
        self._faults = place.faults
        self._tally = tally
        self._clock = MonotonicClock()
        self._tier = place.open()
        capacity = self._tier.capabilities.capacity_blocks
        policy = plugins.load("eviction", "lru")
        admission = plugins.load("admission", "always")
        residency = Residency(
            Arena.create(_RAM_SLOTS, LAYOUT.slot_bytes),
            ["ram", self._tier.capabilities.name],
            [policy(capacity_rows=_RAM_SLOTS), policy(capacity_rows=capacity)],
        )
        engine = TransferEngine([self._tier], LAYOUT.slot_bytes, 64, hang_s=_PROMOTE_S)
        admissions = [admission(), admission()]
        self.cache = TieredCache(residency, [self._tier], admissions, engine, _PROMOTE_S)
        self._faults.arm(fault, _RATE)

    def serve(self, number: int) -> None:
        """Serve one request: load the blocks that the cache has, and save the others."""
        chain = CHAIN_KEYS[self._faults.pick(len(CHAIN_KEYS))]
        keys, name = chain[: 1 + self._faults.pick(len(chain))], f"request-{number}"
        self._call(lambda: self.cache.discover(name, keys))
        found = self._wait(name, keys)
        self._tally.outcomes["READY"] += len(found)
        self._tally.outcomes["ABSENT"] += len(keys) - len(found)
        if found:
            self._load(name, found)
        self._call(lambda: self.cache.release_request(name))
        self._save(keys)
        self._step()
        resident = self.cache.resident_blocks
        for held, capacity in zip(resident, self.cache.capacity_blocks, strict=True):
            self._tally.check_bound(held, capacity)

    def end(self) -> None:
        """Release hanging calls, check the cache's invariants, and close it."""
        self._faults.disarm()
        self._step()
        try:
            self.cache.check()
        except AssertionError as error:
            self._tally.count_failure(repr(error))
        self._timed(lambda: self.cache.close(drain_s=1.0))

    def _wait(self, name: str, keys: Sequence[BlockKey]) -> list[BlockKey]:
        """Wait until no promotion is pending, and return the leading blocks that are ready."""
        began_s = perf_s()
        while True:
            self._step()
            found: list[BlockKey] = []
            is_settled = True
            for key in keys:
                presence = self._timed(lambda key=key: self.cache.presence(name, key))  # type: ignore[misc]
                if presence is None or presence is Presence.ABSENT:
                    break
                is_settled &= presence is Presence.READY
                found.append(key)
            if is_settled:
                return found
            if perf_s() - began_s > DEADLINE_S:
                self._tally.hangs += 1
                return []
            self._timed(lambda found=found: self.cache.discover(name, found))  # type: ignore[misc]
            self._call(lambda found=found: self.cache.promote(name, found))  # type: ignore[misc]
            self._clock.sleep(_PAUSE_S)

    def _load(self, name: str, keys: Sequence[BlockKey]) -> None:
        load = self._call(lambda: self.cache.begin_load(name, keys))
        if load is None:
            self._tally.count_failure("ready blocks cannot be loaded")
            return
        for key, slot in zip(load.keys, load.slots, strict=True):
            self._tally.check_block(BlockMove(key, self.cache.arena.view(slot)))
        self._timed(lambda: self.cache.end_load(load))

    def _save(self, keys: Sequence[BlockKey]) -> None:
        save = self._call(lambda: self.cache.begin_save(keys, [None, *keys[:-1]]))
        if save is None:
            self._tally.outcomes["NO ROOM"] += 1
            return
        for key, slot in zip(save.keys, save.slots, strict=True):
            np.copyto(self.cache.arena.view(slot), SLOTS[key])
        self._timed(lambda: self.cache.end_save(save))

    def _step(self) -> None:
        now_s = self._clock.now_s()
        self._timed(lambda: self.cache.step(now_s))
        self._timed(self.cache.take_events)

    def _call(self, verb: Callable[[], _Result]) -> _Result | None:
        """Make a call that counts as an operation."""
        self._tally.operations += 1
        return self._timed(verb)

    def _timed(self, verb: Callable[[], _Result]) -> _Result | None:
        began_s = perf_s()
        try:
            return verb()
        except Exception as error:  # no exception may leave the cache
            self._tally.count_failure(repr(error))
            return None
        finally:
            self._tally.hangs += perf_s() - began_s > DEADLINE_S


def run_core(place: FaultPlace, fault: FaultKind, operations: int) -> Tally:
    """Make at least `operations` calls of a cache under `fault`, and return their counts.

    Raises OSError if the tier cannot be opened.
    """
    tally = Tally()
    number = 0
    while tally.operations < operations:
        lifetime = _Lifetime(place, fault, tally)
        with LoggedErrors(tally):
            for _ in range(_REQUESTS):
                lifetime.serve(number)
                number += 1
                if tally.operations >= operations:
                    break
            lifetime.end()
    return tally
