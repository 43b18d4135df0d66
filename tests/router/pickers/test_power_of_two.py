from collections import Counter

from kvtier.router.pickers.power_of_two import PLUGIN
from tests.router.cases import candidate, made, names, request


def test_picker_prefers_the_less_busy_of_two() -> None:
    picker = made(PLUGIN)
    three = [candidate("a", in_flight=0), candidate("b", in_flight=5), candidate("c", in_flight=9)]
    picked = [names(picker.pick(request(), three, [0, 0, 0])) for _ in range(600)]
    firsts = Counter(one[0] for one in picked)
    # Of the three pairs, a wins two, b one and c, the busiest, none.
    assert firsts["c"] == 0
    assert 330 < firsts["a"] < 470
    assert all(sorted(one) == ["a", "b", "c"] for one in picked)


def test_single_candidate_is_picked() -> None:
    assert names(made(PLUGIN).pick(request(), [candidate("a")], [0])) == ["a"]
