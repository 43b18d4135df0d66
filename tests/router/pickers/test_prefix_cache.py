import math
from typing import Any

import pytest

from kvtier.router.pickers.prefix_cache import PLUGIN
from tests.router.cases import candidate, made, names, request


def pick(*candidates) -> list[str]:  # type: ignore[no-untyped-def]
    return names(made(PLUGIN).pick(request(), candidates, [0.0] * len(candidates)))


def test_the_longest_prefix_and_then_the_fewest_requests() -> None:
    assert pick(
        candidate("a", {"ram": 500}, in_flight=2),
        candidate("b", {"ram": 900}, in_flight=2),
        candidate("c", in_flight=1),
    ) == ["b", "c", "a"]


def test_of_equal_prefixes_the_fewer_requests() -> None:
    assert pick(
        candidate("a", {"ram": 900}, in_flight=2),
        candidate("b", {"ram": 900}, in_flight=1),
    ) == ["b", "a"]


def test_who_has_more_than_a_deviation_above_the_mean_is_passed_over() -> None:
    idle = [candidate(name, {"ram": 100}, in_flight=1) for name in "bc"]
    idler = candidate("d", {"ram": 100}, in_flight=2)
    # 8, 1, 1, 2: mean 3, deviation 2.9: up to 5.9
    first, *_ = pick(candidate("a", {"ram": 900}, in_flight=8), *idle, idler)
    assert first in ("b", "c")
    # 2, 1, 1, 2: mean 1.5, deviation 0.5: up to 2
    first, *_ = pick(candidate("a", {"ram": 900}, in_flight=2), *idle, idler)
    assert first == "a"


def test_an_uneven_fleet_is_evened_out_first() -> None:
    assert pick(candidate("a", {"ram": 1000}, in_flight=9), candidate("b"))[0] == "b"
    # 8 apart is even enough; mean 4, deviation 4: up to 8
    assert pick(candidate("a", {"ram": 1000}, in_flight=8), candidate("b"))[0] == "a"


def test_the_fewest_requests_where_nobody_holds_anything() -> None:
    assert pick(candidate("a", in_flight=1), candidate("b")) == ["b", "a"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"imbalance": -1}, "imbalance is -1; write 0 or more"),
        ({"deviations": math.nan}, "deviations is nan; write 0 or more"),
        ({"deviations": -0.5}, "deviations is -0.5; write 0 or more"),
        ({"max_num_of_endpoints": 0}, "maxNumOfEndpoints is 0; write 1 or more"),
    ],
)
def test_distances_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PLUGIN.Parameters(**wrong)
