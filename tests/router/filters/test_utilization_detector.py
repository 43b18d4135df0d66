import math

import pytest

from kvtier.router.filters.utilization_detector import PLUGIN
from tests.router.cases import candidate, context, endpoint, made, names, request


def test_a_short_queue_and_room_in_the_cache() -> None:
    candidates = [
        candidate("a", waiting=4, kv_usage=0.79),
        candidate("b", waiting=5, kv_usage=0.1),
        candidate("c", waiting=0, kv_usage=0.8),
    ]
    assert names(made(PLUGIN).keep(request(), candidates)) == ["a"]
    # 5 * 1.2 = 6 and 0.8 * 1.2 = 0.96
    assert names(made(PLUGIN, headroom=0.2).keep(request(), candidates)) == ["a", "b", "c"]


def test_all_where_nobody_has_room() -> None:
    full = [candidate("a", waiting=9), candidate("b", kv_usage=1.0)]
    assert names(made(PLUGIN).keep(request(), full)) == ["a", "b"]


def test_what_was_not_scraped_for_too_long_is_as_good_as_full() -> None:
    one = made(PLUGIN, context(now_s=lambda: 10.0), metrics_staleness_threshold="200ms")
    candidates = [candidate("a", updated_s=9.7), candidate("b", updated_s=9.9)]
    assert names(one.keep(request(), candidates)) == ["b"]


def test_saturation_is_the_mean_of_the_worse_of_both() -> None:
    detector = made(PLUGIN, metrics_staleness_threshold="1s")
    fleet = [
        endpoint("a", waiting=1, kv_usage=0.4),  # max(0.2, 0.5)
        endpoint("b", waiting=10, kv_usage=0.0),  # 2
    ]
    assert detector.saturation(fleet, 0.0) == 1.25
    # a was not scraped since: 1; so was b
    assert detector.saturation(fleet, 2.0) == 1.0
    assert detector.saturation([], 0.0) == 1.0


def test_a_full_endpoint_is_exactly_one() -> None:
    detector = made(PLUGIN)
    assert detector.saturation([endpoint("a", waiting=5)], 0.0) == 1.0
    assert detector.saturation([endpoint("a", kv_usage=0.8)], 0.0) == 1.0
    assert detector.saturation([endpoint("a")], 0.0) == 0.0
    # the queue of a is 3/4 full, the cache of b all of it
    own = made(PLUGIN, queue_depth_threshold=4, kv_cache_util_threshold=0.9)
    fleet = [endpoint("a", waiting=3, kv_usage=0.45), endpoint("b", waiting=1, kv_usage=0.9)]
    assert own.saturation(fleet, 0.0) == 0.875


@pytest.mark.parametrize(
    "wrong",
    [
        {"queue_depth_threshold": 0},
        {"kv_cache_util_threshold": 1.1},
        {"headroom": -0.1},
        {"headroom": math.nan},
        {"metrics_staleness_threshold": "soon"},
    ],
)
def test_thresholds_that_are_none_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"(must be|metricsStalenessThreshold)"):
        PLUGIN.Parameters(**wrong)
