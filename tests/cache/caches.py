"""Small caches on virtual time, with block contents that are derived from the key."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kvtier import plugins
from kvtier.blocks.key import BlockKey
from kvtier.blocks.layout import ALIGNMENT
from kvtier.cache.core import EngineSave, TieredCache
from kvtier.cache.residency import Residency
from kvtier.clock import VirtualClock
from kvtier.memory.arena import Arena
from kvtier.testing.memory_tier import MemoryTier
from kvtier.testing.transfers import InlineTransfers
from kvtier.tiers.base import Buffer, Tier

SLOT_BYTES = ALIGNMENT
DEADLINE_S = 5.0
PAYLOAD_BYTES = 64


def key(number: int, group: int = 0) -> BlockKey:
    return BlockKey(number.to_bytes(8, "big") + group.to_bytes(4, "big"))


def chain(count: int, salt: int = 0) -> list[BlockKey]:
    """Return the keys of a prefix of `count` blocks; prefixes of different salts are disjoint."""
    return [key(salt << 32 | depth) for depth in range(count)]


def parents(keys: Sequence[BlockKey]) -> list[BlockKey | None]:
    return [None, *keys[:-1]]


def payload(block: BlockKey, epoch: int = 0) -> Buffer:
    """Return the bytes that a block must have; they change with the epoch, that is, a reset."""
    seed = int.from_bytes(block, "big") * 1_000_003 + epoch
    return np.random.default_rng(seed).integers(0, 256, PAYLOAD_BYTES, dtype=np.uint8)


def fill(cache: TieredCache, save: EngineSave, epoch: int = 0) -> None:
    for block, slot in zip(save.keys, save.slots, strict=True):
        cache.arena.view(slot)[:PAYLOAD_BYTES] = payload(block, epoch)


def has_right_bytes(cache: TieredCache, block: BlockKey, slot: int, epoch: int = 0) -> bool:
    return bool(np.array_equal(cache.arena.view(slot)[:PAYLOAD_BYTES], payload(block, epoch)))


def make_residency(
    slots: int,
    tiers: Sequence[Tier] = (),
    policy: str = "lru",
    group_suffixes: Sequence[bytes] = (),
) -> Residency:
    make_policy = plugins.load("eviction", policy)
    capacities = [slots, *(tier.capabilities.capacity_blocks for tier in tiers)]
    names = ["ram", *(tier.capabilities.name for tier in tiers)]
    policies = [make_policy(capacity_rows=rows) for rows in capacities]
    return Residency(Arena.create(slots, SLOT_BYTES), names, policies, group_suffixes)


@dataclass
class Rig:
    """A cache with its clock and its transfers."""

    slots: int = 8
    tiers: Sequence[Tier] = ()
    policy: str = "lru"
    admission: str = "always"
    group_suffixes: Sequence[bytes] = ()
    seed: int = 0
    delay_s: float = 0.0
    queue_blocks: int = 4096
    deadline_s: float = DEADLINE_S
    clock: VirtualClock = field(default_factory=VirtualClock)

    def __post_init__(self) -> None:
        self.residency = make_residency(self.slots, self.tiers, self.policy, self.group_suffixes)
        self.transfers = InlineTransfers(
            self.tiers,
            self.clock,
            seed=self.seed,
            delay_s=self.delay_s,
            queue_blocks=self.queue_blocks,
        )
        make_admission = plugins.load("admission", self.admission)
        admissions = [make_admission() for _ in range(len(self.tiers) + 1)]
        self.cache = TieredCache(
            self.residency, self.tiers, admissions, self.transfers, self.deadline_s
        )

    @property
    def index(self):
        return self.residency.index

    def save(self, keys: Sequence[BlockKey], before: Sequence[BlockKey | None] = ()) -> EngineSave:
        save = self.cache.begin_save(keys, before or parents(keys))
        assert save is not None
        fill(self.cache, save)
        self.cache.end_save(save)
        return save

    def load(self, keys: Sequence[BlockKey], request: str = "r") -> bool:
        """Load blocks and check their bytes; return False if one of them is not ready."""
        load = self.cache.begin_load(request, keys)
        if load is None:
            return False
        for block, slot in zip(load.keys, load.slots, strict=True):
            assert has_right_bytes(self.cache, block, slot)
        self.cache.end_load(load)
        return True

    def step(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        self.cache.step(self.clock.now_s())
        self.cache.check()

    def run_until_idle(self) -> None:
        """Step until no transfer is queued, running or waiting."""
        for _ in range(1_000):
            self.step(self.delay_s)
            if self.transfers.is_idle and not self.cache.is_waiting:
                return
        raise AssertionError("the transfers do not come to an end")

    def close(self) -> None:
        self.cache.close()


def memory_tier(blocks: int = 1 << 30, name: str = "below") -> MemoryTier:
    return MemoryTier(blocks, name=name, io_threads=1)
