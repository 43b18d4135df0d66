import msgspec
import pytest

from kvtier.router.config.gauges import CoreMetricsExtractor, EngineConfig, MetricsDataSource
from kvtier.router.learn.gauges import GaugeNames


def test_unset_metric_name_leaves_the_gauge_unchanged() -> None:
    usual = GaugeNames()
    assert CoreMetricsExtractor().named(usual) == usual
    named = CoreMetricsExtractor(engine_configs=(EngineConfig(name="a", running="x"),)).named(usual)
    assert named == msgspec.structs.replace(usual, running=("x", *usual.running))


def test_metric_names_of_the_first_engine_come_first() -> None:
    both = (EngineConfig(name="a", usage="x"), EngineConfig(name="b", usage="y"))
    assert CoreMetricsExtractor(engine_configs=both).named(GaugeNames(usage=())).usage == ("x", "y")


def test_invalid_metric_name_and_path_are_rejected() -> None:
    with pytest.raises(ValueError, match="not a metric"):
        CoreMetricsExtractor(engine_configs=(EngineConfig(name="a", waiting="a b"),))
    with pytest.raises(ValueError, match="path is 'x'"):
        MetricsDataSource(path="x")
    assert MetricsDataSource(path="/x").named(GaugeNames()) == GaugeNames(path="/x")
