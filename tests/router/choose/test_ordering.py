from itertools import permutations

import pytest

from kvtier.clock import seeded
from kvtier.router.choose import ordering
from tests.router.cases import candidate, names

THREE = [candidate(name) for name in "abc"]


def test_the_least_key_first() -> None:
    assert names(ordering.ordered(THREE, [3, 1, 2], seeded(0))) == ["b", "c", "a"]


def test_the_order_given_does_not_matter() -> None:
    keys = {"a": 1.0, "b": 1.0, "c": 0.0}
    orders = {
        tuple(names(ordering.ordered(mixed, [keys[one.endpoint.name] for one in mixed], seeded(7))))
        for mixed in permutations(THREE)
    }
    assert len(orders) == 1
    assert (
        len({tuple(names(ordering.shuffled(mixed, seeded(7)))) for mixed in permutations(THREE)})
        == 1
    )


def test_requests_are_the_more_of_what_is_known() -> None:
    assert ordering.requests(candidate(in_flight=3, waiting=1, running=1)) == 3
    assert ordering.requests(candidate(in_flight=1, waiting=2, running=2)) == 4


def test_somebody_has_to_be_picked() -> None:
    assert ordering.Parameters().max_num_of_endpoints == 4
    with pytest.raises(ValueError, match="write 1 or more"):
        ordering.Parameters(max_num_of_endpoints=0)
