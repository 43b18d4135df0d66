from collections import Counter

from kvtier.router.pickers.random import PLUGIN
from tests.router.cases import candidate, made, names, request

THREE = [candidate(name) for name in "abc"]


def test_picker_is_uniform_regardless_of_scores() -> None:
    picker = made(PLUGIN)
    picked = [names(picker.pick(request(), THREE, [9.0, 0.0, 0.0])) for _ in range(300)]
    assert all(sorted(one) == ["a", "b", "c"] for one in picked)
    firsts = Counter(one[0] for one in picked)
    assert min(firsts[name] for name in "abc") > 60
