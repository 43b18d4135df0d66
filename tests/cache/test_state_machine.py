"""TieredCache against a plain dict: the bytes are right after any sequence of operations.

Transfers run on virtual time in a seeded order, so that they overlap with all rules and
overtake each other. One variant runs on the threads of the transfer engine, with a tier that
hangs. After a `reset` the same key has other bytes, as after a change of weights.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kvtier.admission.always import Always
from kvtier.blocks.key import BlockKey
from kvtier.cache.core import EngineLoad, EngineSave, TieredCache
from kvtier.index.local import Presence
from kvtier.testing.faults import Fault, FaultyTier
from kvtier.testing.memory_tier import MemoryTier
from kvtier.tiers.base import BlockMove, Tier
from kvtier.transfer.base import Direction
from kvtier.transfer.engine import TransferEngine
from tests.cache.caches import (
    DEADLINE_S,
    PAYLOAD_BYTES,
    SLOT_BYTES,
    Rig,
    has_right_bytes,
    key,
    memory_tier,
    payload,
)
from tests.cache.ledger import Ledger

NODES = 18
SLOTS = 6
REQUESTS = ("a", "b", "c")
# A forest: three roots; the parent of node n is n // 2 - 1, so chains are up to four long.
PARENT = [node // 2 - 1 if node > 2 else -1 for node in range(NODES)]

nodes = st.integers(0, NODES - 1)
requests = st.sampled_from(REQUESTS)
indices = st.integers(0, 99)
silent_faults = st.sampled_from(
    [Fault.TORN_WRITE, Fault.BIT_FLIP, Fault.TRUNCATED, Fault.OVER_LONG]
)
loud_faults = st.sampled_from(
    [Fault.PARTIAL, Fault.NO_SPACE, Fault.IO_ERROR, Fault.NO_PERMISSION, Fault.FOLDER_REMOVED]
)


def path(node: int) -> list[int]:
    """Return the nodes from the root to `node`."""
    steps: list[int] = []
    while node >= 0:
        steps.append(node)
        node = PARENT[node]
    return steps[::-1]


class Machine(RuleBasedStateMachine):
    capacities: tuple[int, ...] = (9,)
    policy = "lru"
    admission = "always"
    groups = 1

    def __init__(self) -> None:
        super().__init__()
        self.bytes: dict[BlockKey, int] = {}
        """The model: for every block ever saved, the epoch that its bytes belong to."""
        self.epoch = 0
        self.saves: list[tuple[EngineSave, int]] = []
        self.loads: list[tuple[EngineLoad, int]] = []
        self.holding: dict[str, set[BlockKey]] = {}
        """Blocks that were READY for a request after its `promote`: they must stay READY."""
        self.ledger = Ledger()

    @initialize(seed=st.integers(0, 1 << 16), delay_s=st.sampled_from([0.0, 1.0, 4.0]))
    def build(self, seed: int, delay_s: float) -> None:
        self.inner = [
            memory_tier(capacity, f"below{number}")
            for number, capacity in enumerate(self.capacities)
        ]
        self.tiers = [FaultyTier(tier, seed=seed, block_bytes=PAYLOAD_BYTES) for tier in self.inner]
        self.rig = self.make_rig(self.tiers, seed, delay_s)
        self.cache: TieredCache = self.rig.cache

    def make_rig(self, tiers: Sequence[Tier], seed: int, delay_s: float) -> Rig:
        suffixes = [group.to_bytes(4, "big") for group in range(self.groups)]
        return Rig(
            SLOTS,
            tiers,
            self.policy,
            self.admission,
            suffixes,
            seed=seed,
            delay_s=delay_s,
        )

    def chains(self, node: int) -> list[list[BlockKey]]:
        return [[key(step, group) for step in path(node)] for group in range(self.groups)]

    # -- the engine --------------------------------------------------------------------------

    @rule(node=nodes, ends_at_once=st.booleans())
    def save(self, node: int, ends_at_once: bool) -> None:
        chains = self.chains(node)
        save = self.cache.begin_save(
            [block for blocks in chains for block in blocks],
            [before for blocks in chains for before in [None, *blocks[:-1]]],
        )
        if save is None:
            return
        for block, slot in zip(save.keys, save.slots, strict=True):
            assert self.cache.presence("other", block) is Presence.PENDING
            self.cache.arena.view(slot)[:PAYLOAD_BYTES] = payload(block, self.epoch)
        self.saves.append((save, self.epoch))
        if ends_at_once:
            self.end_one_save(len(self.saves) - 1, set())

    @precondition(lambda self: self.saves)
    @rule(at=indices, failed=st.sets(st.integers(0, 3), max_size=2))
    def end_save(self, at: int, failed: set[int]) -> None:
        self.end_one_save(at % len(self.saves), failed)

    def end_one_save(self, at: int, failed: set[int]) -> None:
        save, epoch = self.saves.pop(at)
        for block, slot in zip(save.keys, save.slots, strict=True):
            assert has_right_bytes(self.cache, block, slot, epoch), (
                "a reserved slot was overwritten"
            )
        failed_slots = frozenset(slot for i, slot in enumerate(save.slots) if i in failed)
        for slot in failed_slots:
            self.cache.arena.view(slot)[:] = 0xEE
        self.cache.end_save(save, failed_slots)
        self.cache.end_save(save)
        if epoch == self.epoch:
            for block, slot in zip(save.keys, save.slots, strict=True):
                if slot not in failed_slots:
                    self.bytes[block] = epoch

    @rule(request=requests, node=nodes, length=st.integers(1, 4))
    def begin_load(self, request: str, node: int, length: int) -> None:
        keys = [block for blocks in self.chains(node) for block in blocks[:length]]
        are_ready = all(self.cache.presence("other", block) is Presence.READY for block in keys)
        load = self.cache.begin_load(request, keys)
        assert (load is not None) == are_ready
        if load is not None:
            self.holding.pop(request, None)
            self.loads.append((load, self.epoch))
            self.check_load(load, self.epoch)

    @rule(request=requests, node=nodes)
    def fetch(self, request: str, node: int) -> None:
        """Do what an engine does: promote, wait, and load the part of the prefix that arrived."""
        self.promote(request, node)
        for _ in range(3):
            self.step(3.0)
        keys = self.chains(node)[0]
        while keys and self.cache.presence(request, keys[-1]) is not Presence.READY:
            keys.pop()
        load = self.cache.begin_load(request, keys)
        if load is not None:
            self.check_load(load, self.epoch)
            self.cache.end_load(load)
            self.holding.pop(request, None)

    @precondition(lambda self: self.loads)
    @rule(at=indices)
    def end_load(self, at: int) -> None:
        load, epoch = self.loads.pop(at % len(self.loads))
        self.check_load(load, epoch)
        self.cache.end_load(load)
        self.cache.end_load(load)

    def check_load(self, load: EngineLoad, epoch: int) -> None:
        for block, slot in zip(load.keys, load.slots, strict=True):
            assert has_right_bytes(self.cache, block, slot, epoch), (
                "the engine would read wrong bytes"
            )

    # -- requests that wait --------------------------------------------------------------------

    @rule(request=requests, node=nodes)
    def promote(self, request: str, node: int) -> None:
        keys = [block for blocks in self.chains(node) for block in blocks]
        self.cache.promote(request, keys)

    @rule(request=requests)
    def release_request(self, request: str) -> None:
        self.cache.release_request(request)
        self.holding.pop(request, None)

    @rule(node=nodes)
    def touch(self, node: int) -> None:
        self.cache.touch(self.chains(node)[0])

    @rule(node=nodes)
    def lookup(self, node: int) -> None:
        for keys in self.chains(node):
            length = self.cache.lookup(keys)
            found = [self.cache.presence("other", block) for block in keys]
            assert Presence.ABSENT not in found[:length]
            assert length == len(keys) or found[length] in (Presence.ABSENT, Presence.UNKNOWN)

    # -- time and faults ---------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 3.0, DEADLINE_S]))
    def step(self, seconds: float) -> None:
        self.rig.clock.advance(seconds)
        self.cache.step(self.rig.clock.now_s())

    @rule(at=indices, fault=st.one_of(silent_faults, loud_faults))
    def break_tier(self, at: int, fault: Fault) -> None:
        self.tiers[at % len(self.tiers)].inject(fault)

    @rule(at=indices, node=nodes)
    def lose_block(self, at: int, node: int) -> None:
        self.inner[at % len(self.inner)].delete([key(node)])

    @rule(at=indices, node=nodes)
    def spoil_block(self, at: int, node: int) -> None:
        inner = self.inner[at % len(self.inner)]
        if inner.contains([key(node)])[0]:
            inner.raw(key(node))[7] ^= 0x10

    @rule()
    def reset(self) -> None:
        self.cache.reset()
        self.epoch += 1
        self.bytes.clear()
        self.holding.clear()
        assert not any(self.cache.resident_blocks)

    @rule()
    def finish_reset(self) -> None:
        """End all copies from before the last reset."""
        self.saves = [each for each in self.saves if each[1] == self.epoch]
        self.loads = [each for each in self.loads if each[1] == self.epoch]
        self.cache.finish_reset()

    # -- invariants --------------------------------------------------------------------------

    @invariant()
    def conservation(self) -> None:
        self.cache.check()
        for resident, capacity in zip(
            self.cache.resident_blocks, self.cache.capacity_blocks, strict=True
        ):
            assert resident <= capacity

    @invariant()
    def loads_keep_their_bytes(self) -> None:
        for load, epoch in self.loads:
            self.check_load(load, epoch)

    @invariant()
    def presence_agrees_with_model(self) -> None:
        pending = {block for save, _ in self.saves for block in save.keys}
        for number in range(NODES):
            for group in range(self.groups):
                block = key(number, group)
                found = self.cache.presence("other", block)
                if found is Presence.READY or found is Presence.BELOW:
                    assert self.bytes.get(block) == self.epoch
                elif found is Presence.PENDING:
                    assert block in self.bytes or block in pending

    @invariant()
    def events_agree_with_index(self) -> None:
        self.ledger.replay(self.cache.take_events())
        index = self.rig.index
        for tier, name in enumerate(self.cache.tier_names):
            held = {block for block, row in index.rows.items() if index.held[row] >> tier & 1}
            assert held == self.ledger.held(name)

    @invariant()
    def held_blocks_stay_ready(self) -> None:
        waits = self.cache._promotion._waits
        for request, blocks in self.holding.items():
            for block in blocks:
                assert self.cache.presence(request, block) is Presence.READY
        self.holding = {
            request: {
                block
                for block in wait.pinned
                if self.cache.presence(request, block) is Presence.READY
            }
            for request, wait in waits.items()
        }

    @invariant()
    def no_request_waits_past_its_deadline(self) -> None:
        now_s = self.rig.cache._now_s
        for request, wait in self.cache._promotion._waits.items():
            if now_s >= wait.deadline_s:
                for number in range(NODES):
                    assert self.cache.presence(request, key(number)) in (
                        Presence.READY,
                        Presence.ABSENT,
                    )

    def threads_are_idle(self) -> None:
        """Do nothing: on virtual time there are no threads."""

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        try:
            self.end_everything()
        finally:
            for tier in self.tiers:
                tier.release()
            self.rig.close()

    def end_everything(self) -> None:
        """End everything; afterwards no pin, reserved slot or transfer is left."""
        while self.saves:
            self.end_one_save(0, set())
        for load, _ in self.loads:
            self.cache.end_load(load)
        for request in REQUESTS:
            self.cache.release_request(request)
        self.cache.finish_reset()
        for tier in self.tiers:
            tier.release()
        for _ in range(200):
            self.step(10.0)
            self.conservation()
            self.threads_are_idle()
            if self.is_idle() and not self.cache.is_waiting:
                break
        else:
            raise AssertionError("the transfers do not come to an end")
        self.events_agree_with_index()
        index = self.rig.index
        assert not any(index.pins)
        arena = self.cache.arena
        assert arena.free + self.cache.resident_blocks[0] == arena.slots
        for tier, inner in enumerate(self.inner, start=1):
            kept = {stored.key for stored in inner.scan().blocks}
            held = self.ledger.held(self.cache.tier_names[tier])
            if inner.capabilities.shared:
                continue  # the index lists only a part of a shared tier
            unknown = len(kept - held)
            assert unknown <= self.cache.deleting_blocks(tier), (
                "a tier holds blocks that the index does not list"
            )

    def is_idle(self) -> bool:
        return self.rig.transfers.is_idle


class TwoTiers(Machine):
    capacities = (4, 8)


class Shared(Machine):
    """The lower tier is shared: other hosts write to it, and the index lists a part of it."""

    KNOWN = 7

    def make_rig(self, tiers: Sequence[Tier], seed: int, delay_s: float) -> Rig:
        self.inner[0] = MemoryTier(name="below0", io_threads=1, shared=True)
        tier = self.tiers[0] = FaultyTier(self.inner[0], seed=seed, block_bytes=PAYLOAD_BYTES)
        tier.capabilities = msgspec.structs.replace(tier.capabilities, capacity_blocks=self.KNOWN)
        return super().make_rig(self.tiers, seed, delay_s)

    @precondition(lambda self: self.epoch == 0)
    @rule(node=nodes, length=st.integers(1, 4))
    def another_host_writes(self, node: int, length: int) -> None:
        for block in self.chains(node)[0][:length]:
            buffer = np.zeros(SLOT_BYTES, np.uint8)
            buffer[:PAYLOAD_BYTES] = payload(block)
            if not self.inner[0].contains([block])[0]:
                # Every reader finds the checksum of the block with its bytes.
                self.tiers[0]._checksums[block] = self.tiers[0]._checksum(buffer)
                self.inner[0].write_from([BlockMove(block, buffer)], [None])
                self.bytes[block] = 0

    @rule(request=requests, node=nodes)
    def discover(self, request: str, node: int) -> None:
        self.cache.discover(request, self.chains(node)[0])

    @rule(request=requests, node=nodes)
    def find_and_fetch(self, request: str, node: int) -> None:
        self.discover(request, node)
        self.step(3.0)
        self.fetch(request, node)


class RamOnly(Machine):
    capacities = ()

    def break_tier(self) -> None: ...

    def lose_block(self) -> None: ...

    def spoil_block(self) -> None: ...


class Arc(Machine):
    policy = "arc"


class Sieve(Machine):
    policy = "sieve"
    capacities = (6,)


class S3Fifo(Machine):
    policy = "s3fifo"


class SecondTouch(Machine):
    admission = "second_touch"


class TwoGroups(Machine):
    groups = 2


class Threads(Machine):
    """The real transfer engine, with a tier that hangs once.

    Threads become idle after each rule, so that a run is reproducible; the cache takes the
    results in at the next `step`.
    """

    def make_rig(self, tiers: Sequence[Tier], seed: int, delay_s: float) -> Rig:
        self.is_hanging = self.has_hung = False
        rig = super().make_rig(tiers, seed, delay_s)
        self.engine = TransferEngine(tiers, SLOT_BYTES, 4096)
        rig.cache = TieredCache(rig.residency, tiers, [Always(), Always()], self.engine, DEADLINE_S)
        return rig

    @precondition(lambda self: not self.has_hung)
    @rule()
    def hang(self) -> None:
        self.is_hanging = self.has_hung = True
        self.tiers[0].inject(Fault.HUNG)

    @precondition(lambda self: self.is_hanging)
    @rule()
    def release_tier(self) -> None:
        self.is_hanging = False
        self.tiers[0].release()

    @invariant()
    def threads_are_idle(self) -> None:
        if not self.is_hanging:
            assert self.engine.drain(30.0)
        elif any(self.engine.queued_blocks(1, direction) for direction in Direction):
            assert self.tiers[0].hung.wait(30.0)

    def end_everything(self) -> None:
        self.release_tier()
        super().end_everything()

    def is_idle(self) -> bool:
        return self.engine.is_idle()


def run(machine: type[Machine], max_examples: int) -> None:
    run_state_machine_as_test(
        machine, settings=settings(max_examples=max_examples, stateful_step_count=50)
    )


@pytest.mark.parametrize("machine", [Machine, TwoTiers, Shared, TwoGroups, Threads])
def test_cache_sample_agrees_with_dict(machine: type[Machine]) -> None:
    run(machine, settings.default.max_examples // 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "machine",
    [Machine, TwoTiers, Shared, RamOnly, Arc, Sieve, S3Fifo, SecondTouch, TwoGroups, Threads],
)
def test_cache_agrees_with_dict(machine: type[Machine]) -> None:
    run(machine, settings.default.max_examples * 2 // 5)
