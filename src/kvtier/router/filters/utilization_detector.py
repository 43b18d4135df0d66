"""`utilization-detector`: keeps the replicas with a short queue and room in the KV cache.

A replica is kept if `waiting < queueDepthThreshold * (1 + headroom)` and
`kv_usage < kvCacheUtilThreshold * (1 + headroom)`. If none qualifies, all are kept, as one has to
serve the request. The saturation of the fleet is the mean over its replicas of
`max(waiting / queueDepthThreshold, kv_usage / kvCacheUtilThreshold)`.
"""

from collections.abc import Sequence

from kvtier.errors import InvalidSettings
from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest
from kvtier.settings.sizes import parse_duration


class UtilizationDetectorParameters(plugins.PluginParameters, frozen=True, kw_only=True):
    """The thresholds; a replica with metrics older than the last one counts as saturated."""

    queue_depth_threshold: int = 5
    kv_cache_util_threshold: float = 0.8
    metrics_staleness_threshold: str = "2s"
    """Ten times the default of llm-d, which scrapes every 50 ms."""
    headroom: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for invalid thresholds; zero ones would cause a division by zero."""
        if self.queue_depth_threshold < 1:
            raise ValueError("queueDepthThreshold must be 1 or more")
        if not 0.0 < self.kv_cache_util_threshold <= 1.0:
            raise ValueError("kvCacheUtilThreshold must be above 0 and at most 1")
        if not self.headroom >= 0:
            raise ValueError("headroom must be 0 or more")
        self.staleness_s()

    def staleness_s(self) -> float:
        """Return the staleness threshold in seconds. Raises ValueError if it is not a duration."""
        try:
            return parse_duration(self.metrics_staleness_threshold, "metricsStalenessThreshold")
        except InvalidSettings as error:
            raise ValueError(str(error)) from error


class UtilizationDetector:
    """A filter by load, which also measures the saturation of the fleet."""

    Parameters = UtilizationDetectorParameters

    def __init__(
        self, parameters: UtilizationDetectorParameters, context: plugins.PluginContext
    ) -> None:
        self._waiting = parameters.queue_depth_threshold
        self._kv_usage = parameters.kv_cache_util_threshold
        self._stretch = 1.0 + parameters.headroom
        self._now_s = context.now_s
        self._stale_s = parameters.staleness_s()

    def keep(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates with room, or all if there are none."""
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
        """Return the saturation of the fleet; 1 or more means no room. An empty fleet has 1."""
        if not endpoints:
            return 1.0
        return sum(self._saturation(one, now_s) for one in endpoints) / len(endpoints)

    def _saturation(self, endpoint: Endpoint, now_s: float) -> float:
        load = endpoint.load
        if now_s - load.updated_s > self._stale_s:
            return 1.0
        return max(load.waiting / self._waiting, load.kv_usage / self._kv_usage)


PLUGIN = UtilizationDetector
