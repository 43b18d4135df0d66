"""What others wrote to a shared tier is found, without waiting and without asking twice."""

import numpy as np
import pytest

from kvtier.blocks.key import UNKNOWN_PARENT
from kvtier.index.local import Presence
from kvtier.testing.faults import Fault, FaultyTier
from kvtier.testing.memory_tier import MemoryTier
from kvtier.tiers.base import BlockMove, Outcome
from kvtier.transfer.base import Direction
from tests.cache.caches import DEADLINE_S, SLOT_BYTES, Rig, chain, key, parents, payload

RECHECK_S = 2.0
"""TieredCache's own default."""
UNKNOWN, BELOW, READY, ABSENT = (
    Presence.UNKNOWN,
    Presence.BELOW,
    Presence.READY,
    Presence.ABSENT,
)


@pytest.fixture
def place() -> MemoryTier:
    """The storage that others write to."""
    return MemoryTier(64, shared=True)


@pytest.fixture
def tier(place: MemoryTier) -> FaultyTier:
    return FaultyTier(place)


@pytest.fixture
def rig(tier: FaultyTier):
    rig = Rig(16, [tier], delay_s=0.5)
    yield rig
    rig.close()


def elsewhere(place: MemoryTier, keys) -> None:
    """Another host writes `keys`."""
    moves = []
    for each in keys:
        buffer = np.zeros(SLOT_BYTES, np.uint8)
        content = payload(each)
        buffer[: len(content)] = content
        moves.append(BlockMove(each, buffer))
    assert place.write_from(moves, parents(keys)) == [Outcome.DONE] * len(keys)


def presences(rig: Rig, keys, request: str = "r") -> list[Presence]:
    return [rig.cache.presence(request, each) for each in keys]


def test_a_block_that_another_host_wrote_is_found_and_loaded(rig: Rig, place: MemoryTier) -> None:
    keys = chain(6)
    elsewhere(place, keys[:4])
    assert presences(rig, keys) == [UNKNOWN] * 6
    rig.cache.discover("r", keys)
    rig.settle()
    assert presences(rig, keys) == [BELOW] * 4 + [ABSENT] * 2
    rig.cache.promote("r", keys[:4])
    rig.settle()
    assert presences(rig, keys) == [READY] * 4 + [ABSENT] * 2
    assert rig.load(keys[:4])
    assert rig.cache.counters.tiers[1].hit_blocks == 4


def test_two_requests_ask_once(rig: Rig) -> None:
    keys = chain(3)
    rig.cache.discover("a", keys)
    rig.cache.discover("b", keys)
    assert rig.cache.queued_blocks(1, Direction.FIND) == 3
    rig.settle()
    assert presences(rig, keys, "b") == [ABSENT] * 3
    rig.cache.discover("b", keys)
    assert rig.cache.queued_blocks(1, Direction.FIND) == 0, "it is known to be absent"


def test_another_hosts_write_is_seen_after_a_while(rig: Rig, place: MemoryTier) -> None:
    keys = chain(2)
    rig.cache.discover("r", keys)
    rig.settle()
    elsewhere(place, keys)
    assert presences(rig, keys, "s") == [ABSENT] * 2
    rig.step(RECHECK_S)
    assert presences(rig, keys, "s") == [UNKNOWN] * 2
    rig.cache.discover("s", keys)
    rig.settle()
    assert presences(rig, keys, "s") == [BELOW] * 2


def test_what_this_process_saved_is_not_asked_for(rig: Rig) -> None:
    keys = chain(3)
    rig.save(keys)
    rig.settle()
    assert presences(rig, keys) == [READY] * 3
    rig.cache.discover("r", keys)
    assert rig.cache.queued_blocks(1, Direction.FIND) == 0


def test_a_request_asks_no_longer_than_its_deadline(rig: Rig) -> None:
    keys = chain(2)
    rig.cache.discover("r", keys)
    rig.step(DEADLINE_S)
    rig.settle()
    rig.step(RECHECK_S)
    assert presences(rig, keys) == [ABSENT] * 2
    assert presences(rig, keys, "other") == [UNKNOWN] * 2


def test_a_storage_that_does_not_answer_is_a_miss(rig: Rig, tier: FaultyTier) -> None:
    keys = chain(4)
    tier.inject(Fault.IO_ERROR)
    rig.cache.discover("r", keys)
    rig.settle()
    assert presences(rig, keys) == [ABSENT] * 4
    assert rig.cache.counters.tiers[1].fault_blocks == 4


def test_a_block_that_was_cleaned_away_is_a_miss_once(rig: Rig, place: MemoryTier) -> None:
    keys = chain(2)
    elsewhere(place, keys)
    rig.cache.discover("r", keys)
    rig.settle()
    place.delete(keys)
    rig.cache.promote("r", keys)
    rig.settle()
    assert presences(rig, keys) == [ABSENT] * 2, "one try a request"
    assert rig.cache.counters.tiers[1].missing_blocks == 2


def test_forgetting_for_room_deletes_nothing(place: MemoryTier) -> None:
    tier = MemoryTier(4, shared=True)
    rig = Rig(8, [tier])
    for number in range(4):
        rig.save([key(number)], [None])
        rig.settle()
    assert len(tier) == 4
    rig.save([key(10)], [None])
    rig.settle()
    assert len(tier) == 4, "full: the tier refused, and nothing was deleted for it"
    assert rig.cache.deleting_blocks(1) == 0
    rig.close()


def test_more_is_found_than_may_be_remembered() -> None:
    place = MemoryTier(64, shared=True)
    elsewhere(place, chain(20))

    class Small(MemoryTier):
        def __init__(self) -> None:
            super().__init__(8, shared=True)

        def find(self, asked):
            return place.find(asked)

    rig = Rig(16, [Small()])
    rig.cache.discover("r", chain(20))
    rig.settle()
    assert presences(rig, chain(20))[:8] == [BELOW] * 8
    assert rig.cache.resident_blocks[1] == 8
    rig.close()


def test_the_tail_of_a_prefix_is_asked_for_by_itself(rig: Rig, place: MemoryTier) -> None:
    elsewhere(place, [key(7)])
    rig.cache.discover("r", [key(7)], UNKNOWN_PARENT)
    rig.settle()
    assert presences(rig, [key(7)]) == [BELOW]
    assert rig.index.detached == 1


def test_after_a_clear_the_shared_tier_is_left_alone(rig: Rig, place: MemoryTier) -> None:
    keys = chain(4)
    elsewhere(place, keys)
    rig.cache.discover("r", keys)
    rig.cache.reset()
    rig.cache.finish_reset()
    rig.settle()
    assert presences(rig, keys, "s") == [ABSENT] * 4
    rig.save(chain(3, salt=1))
    rig.settle()
    assert len(place) == 4, "nothing of what others share was deleted, and nothing is added"
