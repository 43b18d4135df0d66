from itertools import permutations

import pytest

from kvtier.clock import seeded
from kvtier.router.choose import ranking
from kvtier.router.choose.ranking import least_is_best
from tests.router.cases import candidate, names

THREE = [candidate(name) for name in "abc"]


def test_ordered_sorts_by_ascending_key() -> None:
    assert names(ranking.ordered(THREE, [3, 1, 2], seeded(0))) == ["b", "c", "a"]


def test_ordered_and_shuffled_are_independent_of_the_order_given() -> None:
    keys = {"a": 1.0, "b": 1.0, "c": 0.0}
    orders = {
        tuple(names(ranking.ordered(mixed, [keys[one.endpoint.name] for one in mixed], seeded(7))))
        for mixed in permutations(THREE)
    }
    assert len(orders) == 1
    assert (
        len({tuple(names(ranking.shuffled(mixed, seeded(7)))) for mixed in permutations(THREE)})
        == 1
    )


def test_requests_are_the_higher_of_both_counts() -> None:
    assert ranking.requests(candidate(in_flight=3, waiting=1, running=1)) == 3
    assert ranking.requests(candidate(in_flight=1, waiting=2, running=2)) == 4


def test_picker_parameters_reject_zero_endpoints() -> None:
    assert ranking.PickerParameters().max_num_of_endpoints == 4
    with pytest.raises(ValueError, match="write 1 or more"):
        ranking.PickerParameters(max_num_of_endpoints=0)


def test_least_is_best_scales_linearly() -> None:
    assert least_is_best([5, 1, 3]) == [0.0, 1.0, 0.5]


def test_least_is_best_handles_equal_and_no_values() -> None:
    assert least_is_best([2, 2]) == [1.0, 1.0]
    assert least_is_best([]) == []
