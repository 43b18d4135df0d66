from collections import Counter

import pytest

from kvtier.router.pickers.weighted_random import PLUGIN
from tests.router.cases import candidate, made, names, request

THREE = [candidate(name) for name in "abc"]


def test_picks_are_in_proportion_to_scores() -> None:
    picker = made(PLUGIN)
    firsts = Counter(names(picker.pick(request(), THREE, [3, 1, 0]))[0] for _ in range(2000))
    assert firsts["c"] == 0
    assert firsts["a"] / 2000 == pytest.approx(0.75, abs=0.04)


def test_candidate_with_score_zero_comes_last() -> None:
    picker = made(PLUGIN)
    for _ in range(50):
        assert names(picker.pick(request(), THREE, [0, 0.001, 5]))[-1] == "a"


def test_picks_are_uniform_if_all_scores_are_zero() -> None:
    picker = made(PLUGIN)
    firsts = Counter(names(picker.pick(request(), THREE, [0, 0, 0]))[0] for _ in range(300))
    assert min(firsts[name] for name in "abc") > 60
