"""All declared metrics follow the naming rules."""

import re

import pytest

from kvtier.metrics.declaration import LABEL_VALUES, Metric, MetricKind
from kvtier.metrics.engine import METRICS
from kvtier.metrics.evictor import EVICTOR_METRICS
from kvtier.metrics.router import EPP_METRICS, ROUTE_METRICS, ROUTER_METRICS

ALL = METRICS + EVICTOR_METRICS + ROUTE_METRICS + EPP_METRICS + ROUTER_METRICS
UNITS = (
    "blocks|tokens|bytes|seconds|requests|state|files|inodes|shards|calls|subscribers|streams"
    "|endpoints|connections|scrapes|values|restarts|messages|events|gaps"
)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_metric_has_unit_documentation_and_known_labels(metric: Metric) -> None:
    assert re.fullmatch(rf"kvtier_[a-z_]+_({UNITS})", metric.name)
    assert metric.documentation.endswith(".")
    assert set(metric.labels) <= set(LABEL_VALUES)
    assert (metric.buckets is not None) == (metric.kind is MetricKind.HISTOGRAM)
    assert list(metric.buckets or ()) == sorted(set(metric.buckets or ()))


def test_metric_names_are_unique() -> None:
    assert len({metric.name for metric in ALL}) == len(ALL)
