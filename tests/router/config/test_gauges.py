import msgspec
import pytest

from kvtier.router.config.gauges import CoreMetricsExtractor, EngineConfig, MetricsDataSource
from kvtier.router.learn.gauges import GaugeNames


def test_unset_metric_name_leaves_the_gauge_unchanged() -> None:
    base = GaugeNames()
    assert CoreMetricsExtractor().extend(base) == base
    named = CoreMetricsExtractor(engine_configs=(EngineConfig(name="a", running="x"),)).extend(base)
    assert named == msgspec.structs.replace(base, running=("x", *base.running))


def test_metric_names_of_the_first_engine_come_first() -> None:
    both = (EngineConfig(name="a", usage="x"), EngineConfig(name="b", usage="y"))
    assert CoreMetricsExtractor(engine_configs=both).extend(GaugeNames(usage=())).usage == (
        "x",
        "y",
    )


def test_invalid_metric_name_and_path_are_rejected() -> None:
    with pytest.raises(ValueError, match="not a metric"):
        CoreMetricsExtractor(engine_configs=(EngineConfig(name="a", waiting="a b"),))
    with pytest.raises(ValueError, match="path is 'x'"):
        MetricsDataSource(path="x")
    assert MetricsDataSource(path="/x").extend(GaugeNames()) == GaugeNames(path="/x")
