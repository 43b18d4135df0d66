import math

import pytest

from kvtier.router.filters.utilization_detector import PLUGIN
from tests.router.cases import candidate, context, endpoint, made, names, request


def test_detector_keeps_replicas_with_a_short_queue_and_cache_room() -> None:
    candidates = [
        candidate("a", waiting=4, kv_usage=0.79),
        candidate("b", waiting=5, kv_usage=0.1),
        candidate("c", waiting=0, kv_usage=0.8),
    ]
    assert names(made(PLUGIN).keep(request(), candidates)) == ["a"]
    # The thresholds are 5 * 1.2 = 6 and 0.8 * 1.2 = 0.96.
    assert names(made(PLUGIN, headroom=0.2).keep(request(), candidates)) == ["a", "b", "c"]


def test_detector_keeps_all_if_none_has_room() -> None:
    full = [candidate("a", waiting=9), candidate("b", kv_usage=1.0)]
    assert names(made(PLUGIN).keep(request(), full)) == ["a", "b"]


def test_detector_treats_stale_metrics_as_saturated() -> None:
    one = made(PLUGIN, context(now_s=lambda: 10.0), metrics_staleness_threshold="200ms")
    candidates = [candidate("a", updated_s=9.7), candidate("b", updated_s=9.9)]
    assert names(one.keep(request(), candidates)) == ["b"]


def test_saturation_is_the_mean_of_the_higher_utilization() -> None:
    detector = made(PLUGIN, metrics_staleness_threshold="1s")
    fleet = [
        endpoint("a", waiting=1, kv_usage=0.4),  # max(0.2, 0.5)
        endpoint("b", waiting=10, kv_usage=0.0),  # 2
    ]
    assert detector.saturation(fleet, 0.0) == 1.25
    # Stale metrics count as a saturation of 1.
    assert detector.saturation(fleet, 2.0) == 1.0
    assert detector.saturation([], 0.0) == 1.0


def test_saturation_of_a_full_replica_is_one() -> None:
    detector = made(PLUGIN)
    assert detector.saturation([endpoint("a", waiting=5)], 0.0) == 1.0
    assert detector.saturation([endpoint("a", kv_usage=0.8)], 0.0) == 1.0
    assert detector.saturation([endpoint("a")], 0.0) == 0.0
    # The queue of a is 3/4 full, and the cache of b is full.
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
def test_thresholds_out_of_range_are_rejected(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"(must be|metricsStalenessThreshold)"):
        PLUGIN.Parameters(**wrong)
