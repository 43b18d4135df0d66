import re
from pathlib import Path

import pytest

from kvtier import metrics
from kvtier.metrics import (
    EPP_METRICS,
    EVICTOR_METRICS,
    LABEL_VALUES,
    METRICS,
    ROUTE_METRICS,
    ROUTER_METRICS,
    Kind,
    Metric,
)

ROOT = Path(__file__).parents[1]


ALL = METRICS + EVICTOR_METRICS + ROUTE_METRICS + EPP_METRICS + ROUTER_METRICS
UNITS = (
    "blocks|tokens|bytes|seconds|requests|state|files|inodes|shards|calls|subscribers|streams"
    "|endpoints|connections|scrapes|values|restarts|messages|events|gaps"
)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_a_metric_says_its_unit_and_its_bounds(metric: Metric) -> None:
    assert re.fullmatch(rf"kvtier_[a-z_]+_({UNITS})", metric.name)
    assert metric.documentation.endswith(".")
    assert set(metric.labels) <= set(LABEL_VALUES)
    assert (metric.buckets is not None) == (metric.kind is Kind.HISTOGRAM)
    assert list(metric.buckets or ()) == sorted(set(metric.buckets or ()))


def test_every_declaration_is_listed_once() -> None:
    declared = [value for value in vars(metrics).values() if isinstance(value, Metric)]
    assert sorted(declared, key=lambda metric: metric.name) == sorted(
        ALL, key=lambda metric: metric.name
    )
    assert len({metric.name for metric in ALL}) == len(ALL)


def test_the_reference_is_fresh() -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text()
    assert page == metrics.render_markdown(), "run python scripts/render_reference.py"
    assert all(metric.name in page for metric in ALL)
