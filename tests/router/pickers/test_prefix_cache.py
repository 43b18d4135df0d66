import math
from typing import Any

import pytest

from kvtier.router.pickers.prefix_cache import PLUGIN
from tests.router.cases import candidate, made, names, request


def pick(*candidates) -> list[str]:  # type: ignore[no-untyped-def]
    return names(made(PLUGIN).pick(request(), candidates, [0.0] * len(candidates)))


def test_picker_prefers_the_longest_prefix() -> None:
    assert pick(
        candidate("a", {"ram": 500}, in_flight=2),
        candidate("b", {"ram": 900}, in_flight=2),
        candidate("c", in_flight=1),
    ) == ["b", "c", "a"]


def test_picker_breaks_equal_prefixes_by_requests() -> None:
    assert pick(
        candidate("a", {"ram": 900}, in_flight=2),
        candidate("b", {"ram": 900}, in_flight=1),
    ) == ["b", "a"]


def test_picker_skips_replicas_above_the_mean_plus_deviation() -> None:
    idle = [candidate(name, {"ram": 100}, in_flight=1) for name in "bc"]
    idler = candidate("d", {"ram": 100}, in_flight=2)
    # Requests of 8, 1, 1 and 2 have a mean of 3 and a deviation of 2.9: the limit is 5.9.
    first, *_ = pick(candidate("a", {"ram": 900}, in_flight=8), *idle, idler)
    assert first in ("b", "c")
    # Requests of 2, 1, 1 and 2 have a mean of 1.5 and a deviation of 0.5: the limit is 2.
    first, *_ = pick(candidate("a", {"ram": 900}, in_flight=2), *idle, idler)
    assert first == "a"


def test_picker_balances_an_imbalanced_fleet_first() -> None:
    assert pick(candidate("a", {"ram": 1000}, in_flight=9), candidate("b"))[0] == "b"
    # A difference of 8 is balanced; the mean and deviation are 4, so the limit is 8.
    assert pick(candidate("a", {"ram": 1000}, in_flight=8), candidate("b"))[0] == "a"


def test_picker_uses_requests_if_none_holds_the_prompt() -> None:
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
def test_parameters_out_of_range_are_rejected(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PLUGIN.Parameters(**wrong)
