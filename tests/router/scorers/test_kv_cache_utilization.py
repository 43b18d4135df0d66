import pytest

from kvtier.router.scorers.kv_cache_utilization import PLUGIN
from tests.router.cases import candidate, made, request


def test_score_is_the_free_share() -> None:
    used = [candidate("a", kv_usage=0.0), candidate("b", kv_usage=0.3), candidate("c", kv_usage=1)]
    assert made(PLUGIN).score(request(), used) == [1.0, pytest.approx(0.7), 0.0]


def test_score_is_absolute() -> None:
    used = [candidate("a", kv_usage=0.25), candidate("b", kv_usage=0.25)]
    assert made(PLUGIN).score(request(), used) == [0.75, 0.75], "independent of other candidates"
    assert made(PLUGIN).score(request(), used[:1]) == [0.75]
    assert made(PLUGIN).score(request(), []) == []
