import msgspec
import pytest

from kvtier.router.config.gauges import CoreMetricsExtractor, EngineConfig, MetricsDataSource
from kvtier.router.learn.gauges import GaugeNames


def test_an_engine_that_says_nothing_of_a_gauge_leaves_it_as_it_is() -> None:
    usual = GaugeNames()
    assert CoreMetricsExtractor().named(usual) == usual
    named = CoreMetricsExtractor(engine_configs=(EngineConfig(name="a", running="x"),)).named(usual)
    assert named == msgspec.structs.replace(usual, running=("x", *usual.running))


def test_the_first_engine_counts_first() -> None:
    both = (EngineConfig(name="a", usage="x"), EngineConfig(name="b", usage="y"))
    assert CoreMetricsExtractor(engine_configs=both).named(GaugeNames(usage=())).usage == ("x", "y")


def test_what_is_no_metric_and_no_path_is_refused() -> None:
    with pytest.raises(ValueError, match="not a metric"):
        CoreMetricsExtractor(engine_configs=(EngineConfig(name="a", waiting="a b"),))
    with pytest.raises(ValueError, match="path is 'x'"):
        MetricsDataSource(path="x")
    assert MetricsDataSource(path="/x").named(GaugeNames()) == GaugeNames(path="/x")
