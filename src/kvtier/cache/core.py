"""`TieredCache`, the cache that an engine's scheduler calls.

It is a synchronous state machine without files, sockets, clocks, threads or accelerators, so
that an engine, a simulation on virtual time and a test can all drive it. Transfers run
elsewhere, and their results are taken in by `step`.

Invariants: an engine reads only slots whose bytes are whole and verified; no block is readable
before its save has succeeded; no method blocks or raises for an operational fault.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvtier.admission.base import AdmissionDecision, AdmissionPolicy
from kvtier.blocks.events import BlockEvent
from kvtier.blocks.key import BlockKey
from kvtier.cache.demotion import Demotion
from kvtier.cache.discovery import TierDiscovery
from kvtier.cache.promotion import Promotion
from kvtier.cache.residency import CacheCounters, Residency
from kvtier.index.local import DISCARDED, HOLE, IDLE, RAM, SAVING, Presence
from kvtier.memory.arena import Arena, Slot
from kvtier.tiers.base import Tier
from kvtier.transfer.base import Direction, Transfers
from kvtier.transfer.breaker import BreakerState

_log = logging.getLogger(__name__)

_CLOSE_S = 1.0
"""Time that `close` allows for calls in progress to return."""
_DURATIONS_KEPT = 65_536
"""Bound on the recorded durations, for callers that never take them."""


@dataclass(slots=True, eq=False)
class EngineLoad:
    """Pinned slots that the engine may read until `end_load`; `slots[i]` holds `keys[i]`."""

    keys: list[BlockKey]
    slots: list[Slot]
    rows: list[int] = field(repr=False)


@dataclass(slots=True, eq=False)
class EngineSave:
    """Reserved slots that the engine fills before `end_save`; `slots[i]` is for `keys[i]`.

    `keys` are the offered blocks that RAM does not hold and that were admitted.
    """

    keys: list[BlockKey]
    slots: list[Slot]
    rows: list[int] = field(repr=False)


class TieredCache:
    """A prefix cache over RAM and lower tiers.

    All methods belong to one thread, and none of them blocks except `close`.
    `cache.build.build_cache` builds one. `admissions[0]` guards RAM, `admissions[t]` lower tier
    t; `tiers[t - 1]` is lower tier t.
    """

    def __init__(
        self,
        residency: Residency,
        tiers: Sequence[Tier],
        admissions: Sequence[AdmissionPolicy],
        engine: Transfers,
        promote_deadline_s: float,
    ) -> None:
        self._residency = residency
        self._index = residency.index
        self._admission = admissions[RAM]
        self._engine = engine
        self._tiers = tiers
        self._promotion = Promotion(residency, engine, promote_deadline_s)
        self._demotions = [
            Demotion(number, tier.capabilities, admission, residency, engine)
            for number, (tier, admission) in enumerate(
                zip(tiers, admissions[1:], strict=True), start=1
            )
        ]
        self._discoveries = {
            number: TierDiscovery(number, tier.capabilities, residency, engine)
            for number, tier in enumerate(tiers, start=1)
            if tier.capabilities.shared
        }
        self._loads: set[EngineLoad] = set()
        self._saves: set[EngineSave] = set()
        self._copying_at_reset: list[int] = []
        self._now_s = 0.0
        self._closed = False

    # -- state -----------------------------------------------------------------------------

    @property
    def arena(self) -> Arena:
        """The memory whose slots loads and saves refer to."""
        return self._residency.arena

    @property
    def counters(self) -> CacheCounters:
        """Cumulative counters of all tiers."""
        return self._residency.counters

    @property
    def tier_names(self) -> Sequence[str]:
        """The names of the tiers: `ram` first, then the lower tiers."""
        return self._residency.names

    @property
    def resident_blocks(self) -> Sequence[int]:
        """The number of blocks in each tier."""
        return self._residency.resident

    @property
    def capacity_blocks(self) -> list[int]:
        """The number of blocks that fit into each tier."""
        lower = [tier.capabilities.capacity_blocks for tier in self._tiers]
        return [self._residency.arena.slots, *lower]

    @property
    def is_waiting(self) -> bool:
        """True while writes wait to be started by a later `step`."""
        return any(demotion.is_waiting for demotion in self._demotions)

    def deleting_blocks(self, tier: int) -> int:
        """Return the number of blocks whose deletion lower tier `tier` has not confirmed."""
        return self._demotions[tier - 1].deleting_blocks

    def breaker(self, tier: int, direction: Direction) -> BreakerState:
        """Return the state of the circuit breaker for calls to lower tier `tier`."""
        return self._engine.breaker(tier, direction)

    def queued_blocks(self, tier: int, direction: Direction) -> int:
        """Return the number of blocks queued or in transfer to or from lower tier `tier`."""
        return self._engine.queued_blocks(tier, direction)

    def take_events(self) -> list[BlockEvent]:
        """Return and remove the events since the last call, in order."""
        events, self._residency.events = self._residency.events, []
        return events

    # -- lookup and promotion --------------------------------------------------------------

    def lookup(self, keys: Sequence[BlockKey]) -> int:
        """Return how many leading blocks of a prefix chain are pending or in some tier."""
        return self._index.longest_prefix(keys)

    def presence(self, request: str, key: BlockKey) -> Presence:
        """Return where one block is for `request`; past its deadline, pending is absent.

        With a shared tier, a block is UNKNOWN until the tier has been queried, see `discover`.
        """
        now_s = self._now_s
        found = self._promotion.presence(request, key, now_s)
        if (
            found is Presence.ABSENT
            and self._discoveries
            and self._index.presence(key) is Presence.ABSENT
            and not all(each.is_known(key, now_s) for each in self._discoveries.values())
            and self._promotion.may_wait(request, key, now_s)
        ):
            return Presence.UNKNOWN
        return found

    def discover(
        self, request: str, chain: Sequence[BlockKey], parent: BlockKey | None = None
    ) -> None:
        """Query shared tiers for a prefix chain on behalf of `request`.

        `parent` precedes the first block of `chain`, as in `begin_save`.
        """
        self._promotion.start_deadline(request, self._now_s)
        for discovery in self._discoveries.values():
            discovery.query(chain, self._now_s, parent)

    def promote(self, request: str, keys: Sequence[BlockKey]) -> None:
        """Read `keys` into RAM for `request`, and pin those already there; see `Promotion`."""
        self._promotion.promote(request, keys, self._now_s)

    def origin(self, request: str, key: BlockKey) -> int:
        """Return the number of the tier that supplied `key` to `request`; 0 is RAM."""
        return self._promotion.origin(request, key)

    # -- engine reads ----------------------------------------------------------------------

    def begin_load(self, request: str, keys: Sequence[BlockKey]) -> EngineLoad | None:
        """Pin blocks for copying to the device; return None if one of them is not READY.

        Counts as a use of the blocks. Releases the request's promotion pins, since the load
        has its own.
        """
        index = self._index
        rows = [index.rows.get(key, -1) for key in keys]
        held, pins = index.held, index.pins
        for row in rows:
            if row < 0 or not held[row] & 1:
                return None
        counters = self._residency.counters.tiers
        slot = index.slot
        slots = []
        for row in rows:
            pins[row] += 1
            slots.append(slot[row])
        for key in keys:
            counters[self._promotion.origin(request, key)].hit_blocks += 1
        counters[RAM].read_blocks += len(rows)
        self._residency.touch(rows)
        self._promotion.release(request)
        load = EngineLoad(list(keys), slots, rows)
        self._loads.add(load)
        return load

    def end_load(self, load: EngineLoad) -> None:
        """Release the slots of a load whose copy has ended. Idempotent."""
        if load not in self._loads:
            return
        self._loads.remove(load)
        for row in load.rows:
            self._residency.unpin(row)

    # -- engine writes ---------------------------------------------------------------------

    def begin_save(
        self, keys: Sequence[BlockKey], parents: Sequence[BlockKey | None]
    ) -> EngineSave | None:
        """Reserve slots for those of `keys` that RAM lacks, evicting other blocks as needed.

        `parents[i]` is the key before `keys[i]` in its prefix: None for the first block,
        `UNKNOWN_PARENT` where the predecessor is not known.
        Return None if the blocks do not all fit. If RAM holds or rejects all of them, return
        an empty save, for which `end_save` is optional.
        """
        index = self._index
        rows_of, held, state = index.rows, index.held, index.state
        fresh: list[BlockKey] = []
        rows: list[int] = []
        counters = self._residency.counters
        missed = 0
        for key, parent in zip(keys, parents, strict=True):
            row = rows_of.get(key)
            if row is not None and (held[row] & 1 or state[row] not in (IDLE, HOLE)):
                continue
            if self._admission.decide(key) is AdmissionDecision.REJECT:
                counters.tiers[RAM].rejected_blocks += 1
                continue
            if row is None or state[row] == HOLE:
                missed += 1
                row = index.add(key, parent, SAVING)
            else:
                # A lower tier holds the block, but copying it from the device is cheaper.
                state[row] = SAVING
            fresh.append(key)
            rows.append(row)
        slots = self._residency.take_slots(rows) if rows else []
        if slots is None:
            for row in reversed(rows):
                state[row] = IDLE
                index.prune(row)
            counters.tiers[RAM].dropped_blocks += len(rows)
            return None
        counters.miss_blocks += missed
        slot_of = index.slot
        for row, slot in zip(rows, slots, strict=True):
            slot_of[row] = slot
        save = EngineSave(fresh, slots, rows)
        if rows:
            self._saves.add(save)
        return save

    def end_save(self, save: EngineSave, failed_slots: frozenset[Slot] = frozenset()) -> None:
        """Publish the blocks of a save and offer them to the lower tiers. Idempotent.

        The slots in `failed_slots` were not filled; their blocks are discarded.
        """
        if save not in self._saves:
            return
        self._saves.remove(save)
        index = self._index
        whole = []
        for row, slot in zip(save.rows, save.slots, strict=True):
            index.state[row] = IDLE
            if slot in failed_slots:
                self._residency.free_slot(row)
                index.prune(row)
            else:
                whole.append(row)
        keys = self._residency.insert(whole, RAM)
        self._residency.counters.tiers[RAM].written_blocks += len(keys)
        for demotion in self._demotions:
            demotion.offer(whole, keys)

    # -- progress, release and reset -------------------------------------------------------

    def step(self, now_s: float) -> None:
        """Process completed transfers, and start those for which there is room now."""
        self._now_s = now_s
        durations = self._residency.counters.durations
        for completion in self._engine.poll():
            transfer = completion.transfer
            if completion.outcomes is not None and len(durations) < _DURATIONS_KEPT:
                durations.append((transfer.tier, transfer.direction.value, completion.seconds))
            if transfer.direction is Direction.FIND:
                self._discoveries[transfer.tier].complete(completion, now_s)
            elif transfer.direction is Direction.READ:
                self._promotion.complete(completion)
            else:
                self._demotions[transfer.tier - 1].complete(completion)
        for demotion in self._demotions:
            demotion.flush()

    def touch(self, keys: Sequence[BlockKey]) -> None:
        """Record a use of the blocks of a prefix, in order, that loads nothing from the cache."""
        rows = self._index.rows
        self._residency.touch([row for key in keys if (row := rows.get(key)) is not None])

    def release_request(self, request: str) -> None:
        """Release the blocks that the request pinned while it waited."""
        self._promotion.release(request)

    def reset(self) -> None:
        """Remove every block from every tier.

        Shared tiers are neither read nor written from here on. Their blocks cannot be deleted,
        because other engines use them, and after a change of weights they may be wrong for
        this engine, as may this engine's blocks for the others.

        Slots that the engine is copying from or to stay reserved until `finish_reset`.
        """
        self._promotion.reset()
        for discovery in self._discoveries.values():
            discovery.disable()
        for demotion in self._demotions:
            demotion.reset()
        index = self._index
        deleted: list[list[BlockKey]] = [
            [key for key, row in index.rows.items() if index.held[row] >> tier & 1]
            for tier in range(1, len(self._tiers) + 1)
        ]
        for save in self._saves:
            for row in save.rows:
                self._residency.pin(row)
                self._copying_at_reset.append(row)
        for load in self._loads:
            self._copying_at_reset.extend(load.rows)
        self._saves.clear()
        self._loads.clear()
        self._residency.reset()
        for demotion, keys in zip(self._demotions, deleted, strict=True):
            demotion.delete(keys)

    def finish_reset(self) -> None:
        """Release the slots that were being copied at `reset`; the copies must have ended."""
        rows, self._copying_at_reset = self._copying_at_reset, []
        for row in rows:
            assert self._index.state[row] == DISCARDED
            self._residency.unpin(row)

    def check(self) -> None:
        """Assert the invariants of the cache. O(blocks): for tests."""
        self._residency.check()
        for demotion in self._demotions:
            demotion.check()
        owned = self._promotion.pinned_blocks + len(self._copying_at_reset)
        owned += sum(demotion.pinned_blocks for demotion in self._demotions)
        owned += sum(len(load.rows) for load in self._loads)
        assert sum(self._index.pins) == owned, "a pin has no owner"

    def close(self, drain_s: float = 0.0) -> None:
        """Wait up to `drain_s` seconds for queued writes, then close threads, tiers and arena.

        If a call to a tier does not return in time, the tiers are not closed, because closing
        would wait for that call. The next process recovers them as after a kill. Idempotent.
        """
        if self._closed:
            return
        self._closed = True
        self._engine.drain(drain_s)
        has_ended = self._engine.close(deadline_s=max(drain_s, _CLOSE_S))
        # Completions refer to slots and would keep the arena mapped.
        self._promotion.reset()
        self._engine.poll()
        if has_ended:
            for tier in self._tiers:
                tier.close()
        else:
            _log.error("kvtier: a call to a tier does not return; the tiers are not closed")
        self.arena.close()
