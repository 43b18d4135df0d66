import pytest

from kvtier.router.scorers.kv_cache_utilization import PLUGIN
from tests.router.cases import candidate, made, request


def test_the_share_that_is_free() -> None:
    used = [candidate("a", kv_usage=0.0), candidate("b", kv_usage=0.3), candidate("c", kv_usage=1)]
    assert made(PLUGIN).score(request(), used) == [1.0, pytest.approx(0.7), 0.0]


def test_equal_shares_a_single_one_and_nobody() -> None:
    used = [candidate("a", kv_usage=0.25), candidate("b", kv_usage=0.25)]
    assert made(PLUGIN).score(request(), used) == [0.75, 0.75], "absolute, not over the others"
    assert made(PLUGIN).score(request(), used[:1]) == [0.75]
    assert made(PLUGIN).score(request(), []) == []
