"""The LRUs of a replica compared with a simple model: one ordered dict per tier."""

from collections import OrderedDict

from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.index.fleet.estimated import ReplicaLRU
from kvtier.index.fleet.table import CUMULATIVE, BlockTable

LEVELS = (0, 1, 2)


def chain(path: tuple[int, ...]) -> list[int]:
    """Return a hash for every prefix of a path of small numbers."""
    state, found = 1, []
    for number in path:
        state = state * 7 + number + 1
        found.append(state)
    return found


class Model:
    """Independent LRUs, one per tier, touched block by block from the leaf to the root."""

    def __init__(self) -> None:
        self.tiers: dict[int, tuple[int, OrderedDict[int, None]]] = {}

    def resize(self, level: int, capacity: int) -> None:
        held = self.tiers.get(level, (0, OrderedDict()))[1]
        self.tiers[level] = (capacity, held)
        self.evict()

    def touch(self, blocks: list[int]) -> None:
        for _, held in self.tiers.values():
            for block in reversed(blocks):
                held[block] = None
                held.move_to_end(block)
        self.evict()

    def evict(self) -> None:
        for capacity, held in self.tiers.values():
            while len(held) > capacity:
                held.popitem(last=False)

    def byte(self, block: int) -> int:
        raw = sum(1 << level for level, (_, held) in self.tiers.items() if block in held)
        return CUMULATIVE[raw]


paths = st.lists(st.integers(0, 2), max_size=7).map(tuple)
steps = st.one_of(
    st.tuples(st.just("touch"), paths),
    st.tuples(st.sampled_from(LEVELS), st.integers(1, 12)),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(steps, max_size=40))
def test_tiers_match_independent_lrus(taken: list) -> None:
    table = BlockTable(16)
    lru, model = ReplicaLRU(table), Model()
    blocks: set[int] = set()
    for what, argument in taken:
        if what == "touch":
            lru.touch(chain(argument))
            if model.tiers:
                model.touch(chain(argument))
                blocks |= set(chain(argument))
        else:
            lru.resize(what, argument)
            model.resize(what, argument)
        for block in blocks:
            assert table.own_byte(block, lru.slot) == model.byte(block)
        held = {block for block in blocks if model.byte(block)}
        assert len(lru) == len(held)
        assert len(table) == len(held)


def test_shrunk_tier_evicts_leaves_for_good() -> None:
    table = BlockTable(16)
    lru = ReplicaLRU(table)
    lru.resize(0, 4)
    blocks = chain((0, 1, 2, 0))
    lru.touch(blocks)
    lru.resize(0, 2)
    lru.resize(0, 4)
    assert [table.own_byte(block, lru.slot) for block in blocks] == [127, 127, 0, 0]


def test_release_removes_all_blocks() -> None:
    table = BlockTable(16)
    lru = ReplicaLRU(table)
    lru.resize(0, 4)
    lru.touch(chain((0, 1, 2)))
    lru.release()
    assert len(table) == 0


def test_segments_keep_only_their_own_blocks() -> None:
    lru = ReplicaLRU(BlockTable(16))
    lru.resize(0, 10_000)
    long = tuple(range(3)) * 300
    for turn in range(1, 90):
        lru.touch(chain((*long[: turn * 10], 9)))
    kept = sum(len(segment.blocks) for segment in set(lru._segments.values()))
    assert kept == len(lru) == 890 + 89
