"""A seeded simulation of a cache under load and faults on virtual time.

It produces coincidences of events that are rare by themselves. Requests over a prefix tree
overflow RAM and the lower tier; blocks are slow, torn, flipped, lost or rejected; transfers
overtake each other or stall; requests are aborted; weights change, or the process is killed.
Two runs of one seed are equal in every bit.

`simulate` raises AssertionError with the seed if an invariant breaks: wrong bytes, a request
that waits past its deadline, the conservation law, or events that disagree with the index. It
injects all faults of `testing.faults` except HUNG, which needs a thread: transfers stall instead.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from kvtier import plugins
from kvtier.blocks.key import BlockKey
from kvtier.blocks.layout import ALIGNMENT
from kvtier.cache.build import adopt
from kvtier.cache.core import EngineLoad, EngineSave, TieredCache
from kvtier.cache.residency import CacheCounters, Residency
from kvtier.clock import VirtualClock, seeded
from kvtier.index.local import Presence
from kvtier.memory.arena import Arena, Slot
from kvtier.testing.faults import Fault, FaultyTier
from kvtier.testing.memory_tier import MemoryTier
from kvtier.testing.transfers import InlineTransfers
from kvtier.tiers.base import Buffer
from tests.cache.ledger import Ledger

DEADLINE_S = 2.0
_PAYLOAD_BYTES = 64
_DOCUMENTS = 40
_CHECK_EVERY = 16
_MAX_WAITING = 6


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a run, equal in every field for two runs of one seed."""

    seed: int
    served_requests: int
    aborted_requests: int
    hit_blocks: tuple[int, int]
    """In RAM, and in the lower tier."""
    evicted_blocks: tuple[int, int]
    corrupt_blocks: int
    expired_requests: int
    faults: int
    restarts: int
    resets: int
    digest: str
    """SHA-256 of all counters and of the tiers that hold each block."""


@dataclass(slots=True, eq=False)
class _Request:
    name: str
    keys: list[BlockKey]
    asked_s: float | None = None
    end_s: float = 0.0
    epoch: int = 0
    load: EngineLoad | None = None
    save: EngineSave | None = None


class _Simulation:
    """The engine's side of a run: waiting requests, running requests, and time."""

    def __init__(self, seed: int, fault_rate: float) -> None:
        rng = self.rng = seeded(seed)
        self.seed = seed
        self.clock = VirtualClock()
        self.inner = MemoryTier(rng.randint(16, 80), name="below")
        self.tier = FaultyTier(
            self.inner,
            seed=rng.getrandbits(32),
            rates={
                fault: fault_rate * rng.random() / (50 if fault is Fault.FOLDER_REMOVED else 1)
                for fault in Fault
                if fault is not Fault.HUNG
            },
            clock=self.clock,
            slow_s=DEADLINE_S / 4,
            block_bytes=_PAYLOAD_BYTES,
        )
        self.slots = rng.randint(8, 32)
        self.policy = rng.choice(("lru", "sieve", "arc", "s3fifo"))
        self.admission = rng.choice(("always", "always", "second_touch"))
        # A run has either resets or kills: a process killed during a reset finds blocks of the
        # old weights again, which is correct there, because it has the old weights, too.
        self.has_resets = rng.random() < 0.5
        self.waiting: list[_Request] = []
        self.running: list[_Request] = []
        self.epoch = self.served = self.aborted = self.restarts = self.resets = 0
        self.reset_ends_s: float | None = None
        self.counters: list[CacheCounters] = []
        """One entry per process."""
        self.start()

    def start(self) -> None:
        """Start a new process, with an empty RAM and the blocks that the tier lists."""
        make_policy = plugins.load("eviction", self.policy)
        make_admission = plugins.load("admission", self.admission)
        capacities = (self.slots, self.tier.capabilities.capacity_blocks)
        residency = Residency(
            Arena.create(self.slots, ALIGNMENT),
            ["ram", self.tier.capabilities.name],
            [make_policy(capacity_rows=rows) for rows in capacities],
        )
        self.transfers = InlineTransfers(
            [self.tier],
            self.clock,
            seed=self.rng.getrandbits(32),
            queue_blocks=self.rng.choice((8, 64)),
            delay_s=self.rng.choice((0.01, 0.3)),
            stall_s=3 * DEADLINE_S,
            stall_every=60,
        )
        adopt(residency, 1, self.tier)
        self.ledger = Ledger()
        self.ledger.held(self.tier.capabilities.name).update(residency.index.rows)
        self.residency = residency
        self.counters.append(residency.counters)
        self.cache = TieredCache(
            residency, [self.tier], [make_admission(), make_admission()], self.transfers, DEADLINE_S
        )

    def step(self) -> None:
        """Run one step of the engine's scheduler."""
        self.clock.advance(self.rng.expovariate(20.0))
        now_s = self.clock.now_s()
        self.cache.step(now_s)
        if self.reset_ends_s is not None and now_s >= self.reset_ends_s:
            self.reset_ends_s = None
            self.cache.finish_reset()
        for request in [each for each in self.running if each.end_s <= now_s]:
            self.finish(request)
        for request in list(self.waiting):
            self.schedule(request, now_s)
        self.ledger.replay(self.cache.take_events())

    def arrive(self, number: int) -> None:
        """Add a request for a part or a continuation of a document; a few documents are popular."""
        if len(self.waiting) >= _MAX_WAITING:
            return
        document = min(int(self.rng.paretovariate(0.6)), _DOCUMENTS)
        branch = self.rng.randrange(3)
        shared = 2 + document % 5
        length = self.rng.randint(1, max(2, self.slots // 2))
        keys: list[BlockKey] = []
        for depth in range(length):
            place = (document, 0 if depth < shared else 1 + branch, depth)
            keys.append(BlockKey(bytes(place) + bytes(4)))
        self.waiting.append(_Request(f"request-{number}", keys))

    def schedule(self, request: _Request, now_s: float) -> None:
        """Let a request wait, or load the blocks there are and save the others."""
        found: list[Presence] = []
        for key in request.keys:
            presence = self.cache.presence(request.name, key)
            if presence is Presence.ABSENT:
                break
            found.append(presence)
        if any(presence is not Presence.READY for presence in found):
            if request.asked_s is None:
                request.asked_s = now_s
            assert now_s < request.asked_s + DEADLINE_S, "a request waits past its deadline"
            self.cache.promote(request.name, request.keys[: len(found)])
            return
        self.waiting.remove(request)
        self.running.append(request)
        request.end_s = now_s + self.rng.expovariate(4.0)
        request.epoch = self.epoch
        if found:
            request.load = self.cache.begin_load(request.name, request.keys[: len(found)])
            assert request.load is not None, "READY blocks were not loaded"
            self.check_bytes(request.load.keys, request.load.slots, request.epoch)
        self.cache.release_request(request.name)
        request.save = self.cache.begin_save(request.keys, [None, *request.keys[:-1]])
        if request.save is not None:
            for key, slot in zip(request.save.keys, request.save.slots, strict=True):
                self.cache.arena.view(slot)[:_PAYLOAD_BYTES] = _payload(key, self.epoch)

    def finish(self, request: _Request) -> None:
        """End the copies of a request."""
        self.running.remove(request)
        if request.load is not None:
            self.check_bytes(request.load.keys, request.load.slots, request.epoch)
            self.cache.end_load(request.load)
        if request.save is not None:
            slots = request.save.slots
            self.check_bytes(request.save.keys, slots, request.epoch)
            failed = [slot for slot in slots if self.rng.random() < 0.03]
            for slot in failed:
                self.cache.arena.view(slot)[:] = 0xEE
            self.cache.end_save(request.save, frozenset(failed))
        self.cache.touch(request.keys)
        self.served += 1

    def disturb(self) -> None:
        """Rarely abort a request, change the weights, or kill the process."""
        if self.waiting and self.rng.random() < 0.02:
            request = self.waiting.pop(self.rng.randrange(len(self.waiting)))
            self.cache.release_request(request.name)
            self.aborted += 1
        if self.rng.random() < 0.002:
            if self.has_resets:
                self.reset()
            else:
                self.kill()

    def reset(self) -> None:
        """Change the weights: from now on the same keys have other bytes."""
        self.cache.reset()
        self.epoch += 1
        self.resets += 1
        self.reset_ends_s = self.clock.now_s() + 2.0

    def kill(self) -> None:
        """Restart as after `kill -9`: RAM is lost, transfers stop, and the tier remains."""
        self.cache.arena.close()
        self.waiting.clear()
        self.running.clear()
        self.restarts += 1
        self.start()

    def end(self) -> None:
        """End all requests and transfers; afterwards nothing is pinned, moving or undeleted."""
        while self.waiting or self.running:
            self.step()
        self.cache.finish_reset()
        for _ in range(1_000):
            self.clock.advance(10 * DEADLINE_S)
            self.cache.step(self.clock.now_s())
            if self.transfers.is_idle and not self.cache.is_waiting:
                break
        assert self.transfers.is_idle, "the transfers do not come to an end"
        self.check()
        assert not any(self.residency.index.pins), "a pin is left"
        arena = self.cache.arena
        assert arena.free + self.cache.resident_blocks[0] == arena.slots, "a slot is lost"
        known = self.cache.resident_blocks[1] + self.cache.deleting_blocks(1)
        assert len(self.inner) <= known, "the tier holds blocks that the index does not list"

    def check_bytes(self, keys: Sequence[BlockKey], slots: Sequence[Slot], epoch: int) -> None:
        """Assert that every slot holds the bytes of its key."""
        for key, slot in zip(keys, slots, strict=True):
            right = _payload(key, epoch)
            assert np.array_equal(self.cache.arena.view(slot)[:_PAYLOAD_BYTES], right), (
                f"wrong bytes for {key.hex()}"
            )

    def check(self) -> None:
        """Assert the cache's invariants, and that its events agree with its index."""
        self.cache.check()
        self.ledger.replay(self.cache.take_events())
        index = self.residency.index
        for tier, name in enumerate(self.cache.tier_names):
            held = {key for key, row in index.rows.items() if index.held[row] >> tier & 1}
            assert held == self.ledger.held(name), f"events disagree about {name}"
            assert len(held) <= self.cache.capacity_blocks[tier], f"{name} is over its capacity"

    def report(self) -> Report:
        """Return the result of the run."""
        index = self.residency.index
        held = sorted((key.hex(), index.held[row]) for key, row in index.rows.items())
        ram, below = zip(*(counters.tiers for counters in self.counters), strict=True)
        counts = msgspec.to_builtins((ram, below))
        state = msgspec.json.encode((held, counts, self.clock.now_s()))
        return Report(
            seed=self.seed,
            served_requests=self.served,
            aborted_requests=self.aborted,
            hit_blocks=(
                sum(each.hit_blocks for each in ram),
                sum(each.hit_blocks for each in below),
            ),
            evicted_blocks=(
                sum(each.evicted_blocks for each in ram),
                sum(each.evicted_blocks for each in below),
            ),
            corrupt_blocks=sum(each.corrupt_blocks for each in below),
            expired_requests=sum(counters.expired_promotions for counters in self.counters),
            faults=len(self.tier.happened),
            restarts=self.restarts,
            resets=self.resets,
            digest=hashlib.sha256(state).hexdigest(),
        )


def simulate(seed: int, operations: int = 600, fault_rate: float = 0.1) -> Report:
    """Run `operations` scheduler steps, about 100 us each, and return the result.

    `fault_rate` is the greatest probability of a fault per call of the tier. Raises
    AssertionError with a note that names the seed.
    """
    simulation = _Simulation(seed, fault_rate)
    try:
        for number in range(operations):
            if simulation.rng.random() < 0.6:
                simulation.arrive(number)
            simulation.step()
            simulation.disturb()
            if number % _CHECK_EVERY == 0:
                simulation.check()
        simulation.end()
        return simulation.report()
    except AssertionError as error:
        error.add_note(f"simulate(seed={seed}, operations={operations}, fault_rate={fault_rate})")
        raise
    finally:
        simulation.cache.close()


def _payload(key: BlockKey, epoch: int) -> Buffer:
    digest = hashlib.blake2b(key, digest_size=_PAYLOAD_BYTES, salt=epoch.to_bytes(16, "big"))
    return np.frombuffer(digest.digest(), np.uint8)
