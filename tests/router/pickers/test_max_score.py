from collections import Counter

import pytest

from kvtier.router.pickers.max_score import PLUGIN
from tests.router.cases import candidate, made, names, request

FOUR = [candidate(name) for name in "abcd"]


def test_picker_orders_by_descending_score() -> None:
    assert names(made(PLUGIN).pick(request(), FOUR, [0.1, 3.0, 2.0, -1.0])) == list("bcad")


def test_picker_returns_max_num_of_endpoints() -> None:
    one = made(PLUGIN, max_num_of_endpoints=2)
    assert names(one.pick(request(), FOUR, [0.1, 3.0, 2.0, -1.0])) == ["b", "c"]
    with pytest.raises(ValueError, match="maxNumOfEndpoints is 0"):
        PLUGIN.Parameters(max_num_of_endpoints=0)


def test_picker_breaks_ties_at_random() -> None:
    picker = made(PLUGIN)
    firsts = Counter(names(picker.pick(request(), FOUR, [1, 1, 0, 1]))[0] for _ in range(300))
    assert set(firsts) == {"a", "b", "d"}
    assert min(firsts.values()) > 50


def test_keys_are_the_negated_scores() -> None:
    assert PLUGIN.keys(FOUR, [0.5, 1.0, 0.0, 1.0]) == [-0.5, -1.0, 0.0, -1.0]
