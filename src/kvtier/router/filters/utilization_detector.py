"""`utilization-detector`: endpoints with a short queue and room in the KV cache.

An endpoint stays while `waiting < queueDepthThreshold * (1 + headroom)` and
`kv_usage < kvCacheUtilThreshold * (1 + headroom)`. All stay where none would: somebody has to
serve. Whether the whole fleet is saturated: `saturation`, the mean over the endpoints of
`max(waiting / queueDepthThreshold, kv_usage / kvCacheUtilThreshold)`.
"""

from collections.abc import Sequence

from kvtier.errors import InvalidSettings
from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest
from kvtier.settings.sizes import parse_duration


class UtilizationDetector:
    """By the last scrape, while it is fresh."""

    class Parameters(plugins.PluginParameters, frozen=True, kw_only=True):
        """What is older than the staleness threshold is as good as saturated."""

        queue_depth_threshold: int = 5
        kv_cache_util_threshold: float = 0.8
        metrics_staleness_threshold: str = "2s"
        """Ten times that of the field, which scrapes every 50 ms."""
        headroom: float = 0.0

        def __post_init__(self) -> None:
            """Thresholds of none would divide by it."""
            if self.queue_depth_threshold < 1:
                raise ValueError("queueDepthThreshold has to be 1 or more")
            if not 0.0 < self.kv_cache_util_threshold <= 1.0:
                raise ValueError("kvCacheUtilThreshold has to be above 0 and up to 1")
            if not self.headroom >= 0:
                raise ValueError("headroom has to be 0 or more")
            self.staleness_s()

        def staleness_s(self) -> float:
            """The threshold in seconds. Raises ValueError where it is no duration."""
            try:
                return parse_duration(self.metrics_staleness_threshold, "metricsStalenessThreshold")
            except InvalidSettings as error:
                raise ValueError(str(error)) from error

    def __init__(self, parameters: Parameters, context: plugins.PluginContext) -> None:
        self._waiting = parameters.queue_depth_threshold
        self._kv_usage = parameters.kv_cache_util_threshold
        self._stretch = 1.0 + parameters.headroom
        self._now_s = context.now_s
        self._stale_s = parameters.staleness_s()

    def keep(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[Candidate]:
        """O(n)."""
        now_s = self._now_s()
        waiting, kv_usage = self._waiting * self._stretch, self._kv_usage * self._stretch
        free = [
            one
            for one in candidates
            if (load := one.endpoint.load).waiting < waiting
            and load.kv_usage < kv_usage
            and now_s - load.updated_s <= self._stale_s
        ]
        return free or list(candidates)

    def saturation(self, endpoints: Sequence[Endpoint], now_s: float) -> float:
        """1 and above: the fleet has no room. 1 for no endpoints."""
        if not endpoints:
            return 1.0
        return sum(self._saturation(one, now_s) for one in endpoints) / len(endpoints)

    def _saturation(self, endpoint: Endpoint, now_s: float) -> float:
        load = endpoint.load
        if now_s - load.updated_s > self._stale_s:
            return 1.0
        return max(load.waiting / self._waiting, load.kv_usage / self._kv_usage)


PLUGIN = UtilizationDetector
