from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.eviction.base import EvictionPolicy
from kvtier.eviction.lru import PLUGIN, Lru
from kvtier.testing.eviction import EvictionContract, numbered_key


class TestLruContract(EvictionContract):
    def make_policy(self, capacity_rows: int | None = None) -> EvictionPolicy:
        return Lru(capacity_rows=capacity_rows)

    @pytest.mark.slow
    def test_memory_is_at_most_sixteen_bytes_a_row(self) -> None:
        super().test_memory_is_at_most_sixteen_bytes_a_row()


def test_plugin_needs_no_arguments() -> None:
    assert PLUGIN is Lru
    assert len(PLUGIN()) == 0


@given(
    uses=st.lists(st.tuples(st.sampled_from(["use", "use", "remove", "victim"]), st.integers(0, 9)))
)
def test_lru_victim_is_least_recently_used_row(uses: list[tuple[str, int]]) -> None:
    """The order is exact as long as few rows are rejected, whatever rows are pinned."""
    lru = Lru()
    order: OrderedDict[int, None] = OrderedDict()
    for verb, row in uses:
        if verb == "use":
            lru.access(row) if row in order else lru.insert(row, numbered_key(row))
            order[row] = None
            order.move_to_end(row)
        elif verb == "remove" and row in order:
            lru.remove(row)
            del order[row]
        elif verb == "victim":
            pinned = {row, (row + 5) % 10}
            expected = next((each for each in order if each not in pinned), None)
            assert lru.victim(set(range(10)).difference(pinned).__contains__) == expected
            if expected is not None:
                del order[expected]
    assert [lru.victim(lambda _row: True) for _ in range(len(order))] == list(order)
