"""TieredCache: the one place that decides what is where, whom to evict and what to move.

A synchronous state machine: it touches no file, socket, clock, thread or accelerator. An
engine drives it from its scheduler, a simulator on virtual time, tests by hand. Transfers run
elsewhere and come back through `step`.

Invariants: a block is given to an engine only from a slot whose bytes are whole and verified;
no block is readable before its save ended well; nothing here blocks or raises for a fault.
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
"""How long a call that is under way may take to return at `close`."""
_DURATIONS_KEPT = 65_536
"""Where nobody takes the durations, they must not grow for ever."""


@dataclass(slots=True, eq=False)
class EngineLoad:
    """Slots an engine may read until `end_load`; `slots[i]` holds `keys[i]`."""

    keys: list[BlockKey]
    slots: list[Slot]
    rows: list[int] = field(repr=False)


@dataclass(slots=True, eq=False)
class EngineSave:
    """Slots an engine must fill before `end_save`; `slots[i]` is for `keys[i]`.

    `keys` are those of the offered blocks that RAM does not hold and admission let in.
    """

    keys: list[BlockKey]
    slots: list[Slot]
    rows: list[int] = field(repr=False)


class TieredCache:
    """A prefix cache over RAM and lower tiers. All verbs belong to one thread; none blocks.

    `admissions[0]` guards RAM, `admissions[t]` lower tier t; `tiers[t - 1]` is lower tier t.
    Build one with `cache.build.build_cache`, which wires the parts.
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

    # -- what the drivers read -------------------------------------------------------------

    @property
    def arena(self) -> Arena:
        """The slots that loads and saves name."""
        return self._residency.arena

    @property
    def counters(self) -> CacheCounters:
        """Cumulative counts; see `cache.counters`."""
        return self._residency.counters

    @property
    def tier_names(self) -> Sequence[str]:
        """`ram`, then the lower tiers."""
        return self._residency.names

    @property
    def resident_blocks(self) -> Sequence[int]:
        """Blocks held, per tier."""
        return self._residency.resident

    @property
    def capacity_blocks(self) -> list[int]:
        """Blocks that fit, per tier."""
        lower = [tier.capabilities.capacity_blocks for tier in self._tiers]
        return [self._residency.arena.slots, *lower]

    @property
    def is_waiting(self) -> bool:
        """True if `step` must be called again for work that is not under way yet."""
        return any(demotion.is_waiting for demotion in self._demotions)

    def deleting_blocks(self, tier: int) -> int:
        """Blocks that lower tier `tier` has been told to delete and has not confirmed."""
        return self._demotions[tier - 1].deleting_blocks

    def breaker(self, tier: int, direction: Direction) -> BreakerState:
        """Whether calls to lower tier `tier` pass now."""
        return self._engine.breaker(tier, direction)

    def queued_blocks(self, tier: int, direction: Direction) -> int:
        """Blocks waiting for or in transfer to or from lower tier `tier`."""
        return self._engine.queued_blocks(tier, direction)

    def take_events(self) -> list[BlockEvent]:
        """Events since the last call, in order."""
        events, self._residency.events = self._residency.events, []
        return events

    # -- finding ---------------------------------------------------------------------------

    def lookup(self, keys: Sequence[BlockKey]) -> int:
        """Leading blocks of a prefix chain present in any tier or pending. No side effects."""
        return self._index.longest_prefix(keys)

    def presence(self, request: str, key: BlockKey) -> Presence:
        """Where one block is for this request: past its deadline, pending is absent.

        UNKNOWN until `ask` has brought an answer, where a tier is shared with others.
        """
        now_s = self._now_s
        found = self._promotion.presence(request, key, now_s)
        if (
            found is Presence.ABSENT
            and self._discoveries
            and self._index.presence(key) is Presence.ABSENT
            and not all(each.knows(key, now_s) for each in self._discoveries.values())
            and self._promotion.may_wait(request, key, now_s)
        ):
            return Presence.UNKNOWN
        return found

    def discover(
        self, request: str, chain: Sequence[BlockKey], parent: BlockKey | None = None
    ) -> None:
        """Find out for `request` what shared tiers hold of a prefix chain.

        `parent` precedes the first block of `chain`: see `begin_save`.
        """
        self._promotion.begin(request, self._now_s)
        for discovery in self._discoveries.values():
            discovery.query(chain, self._now_s, parent)

    def promote(self, request: str, keys: Sequence[BlockKey]) -> None:
        """Bring `keys` into RAM for `request`, and keep those that are there. See Promotion."""
        self._promotion.promote(request, keys, self._now_s)

    def origin(self, request: str, key: BlockKey) -> int:
        """Number of the tier that supplied `key` to `request`; 0 is RAM."""
        return self._promotion.origin(request, key)

    # -- engine reads ----------------------------------------------------------------------

    def begin_load(self, request: str, keys: Sequence[BlockKey]) -> EngineLoad | None:
        """Pin blocks that are READY for copying out; None if one of them is not.

        Recency changes here. The request's promotion pins are released: the load's hold.
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
        """The copy is over; the blocks may be evicted again. Ending twice is harmless."""
        if load not in self._loads:
            return
        self._loads.remove(load)
        for row in load.rows:
            self._residency.unpin(row)

    # -- engine writes ---------------------------------------------------------------------

    def begin_save(
        self, keys: Sequence[BlockKey], parents: Sequence[BlockKey | None]
    ) -> EngineSave | None:
        """Reserve slots for those of `keys` that RAM lacks, evicting what must go.

        `parents[i]` precedes `keys[i]` in its prefix: None if `keys[i]` is the first,
        `UNKNOWN_PARENT` where its predecessor is not known.
        None if not all of them find room; an empty save, which nobody needs to end, if RAM
        has or refuses every one.
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
                # A lower tier holds it, the device has it too: copying down is cheaper.
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
        """The engine has filled the slots, but for `failed_slots`. Ending twice is harmless."""
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

    # -- time, forgetting, the end ---------------------------------------------------------

    def step(self, now_s: float) -> None:
        """Take in what transfers have completed, and start what has room now."""
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
        """The blocks of a prefix, in order, were used, though not loaded from here."""
        rows = self._index.rows
        self._residency.touch([row for key in keys if (row := rows.get(key)) is not None])

    def release_request(self, request: str) -> None:
        """The request is over, or runs: release what it pinned while it waited."""
        self._promotion.release(request)

    def reset(self) -> None:
        """Forget every block in every tier.

        What is shared with others cannot be deleted here and may be wrong for this process from
        now on (its weights may have changed), and its blocks wrong for others: shared tiers are
        neither read nor written any more.

        Copies the engine has under way keep their slots until `finish_reset`: the driver
        calls it once the engine has said that none of them runs any more.
        """
        self._promotion.reset()
        for discovery in self._discoveries.values():
            discovery.stop()
        for demotion in self._demotions:
            demotion.reset()
        index = self._index
        doomed: list[list[BlockKey]] = [
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
        for demotion, keys in zip(self._demotions, doomed, strict=True):
            demotion.delete(keys)

    def finish_reset(self) -> None:
        """No copy that was under way at `clear` runs any more: free their slots."""
        limbo, self._copying_at_reset = self._copying_at_reset, []
        for row in limbo:
            assert self._index.state[row] == DISCARDED
            self._residency.unpin(row)

    def check(self) -> None:
        """Assert the invariants. O(blocks): for tests."""
        self._residency.check()
        for demotion in self._demotions:
            demotion.check()
        owned = self._promotion.pinned_blocks + len(self._copying_at_reset)
        owned += sum(demotion.pinned_blocks for demotion in self._demotions)
        owned += sum(len(load.rows) for load in self._loads)
        assert sum(self._index.pins) == owned, "a pin has no owner"

    def close(self, drain_s: float = 0.0) -> None:
        """Let queued writes finish for at most `drain_s`, then end threads, tiers and arena.

        Where a tier's call does not return in time, the tiers stay as they are: to close one
        would wait for that call. They go with the process, as after a kill.
        """
        if self._closed:
            return
        self._closed = True
        self._engine.drain(drain_s)
        has_ended = self._engine.close(deadline_s=max(drain_s, _CLOSE_S))
        # What still names slots keeps the arena mapped.
        self._promotion.reset()
        self._engine.poll()
        if has_ended:
            for tier in self._tiers:
                tier.close()
        else:
            _log.error("a tier's call does not return; the tiers are left as they are")
        self.arena.close()
