"""A cheap histogram: the data path adds to plain numbers, and a scrape builds the metric from them.

The class of `prometheus_client` takes a lock on every observation, which a router that measures
every request need not pay.
"""

import bisect
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric

from kvtier.metrics import declaration


class Histogram:
    """A histogram of one declared metric. Not thread-safe."""

    def __init__(self, metric: declaration.Metric) -> None:
        assert metric.buckets is not None
        self.metric = metric
        self._bounds = metric.buckets
        self._counts = [0] * (len(metric.buckets) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one observation, in the metric's unit."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def family(self) -> Metric:
        """Return the metric family to expose."""
        family = HistogramMetricFamily(self.metric.name, self.metric.documentation)
        names = [*(str(bound) for bound in self._bounds), "+Inf"]
        counts = accumulate(self._counts)
        family.add_metric([], list(zip(names, counts, strict=True)), self._sum)
        return family
