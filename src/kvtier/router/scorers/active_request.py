"""`active-request-scorer`: prefers the replicas with the fewest requests from this router.

The score is 1 up to `idleThreshold` requests in flight, and above that
`maxBusyScore * (most - in_flight) / most`, where `most` is the maximum over the candidates.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest


class ActiveRequestParameters(plugins.PluginParameters, frozen=True, kw_only=True):
    """The thresholds; a `maxBusyScore` below 1 separates idle replicas from busy ones."""

    idle_threshold: int = 0
    max_busy_score: float = 1.0
    request_timeout: str = ""
    """Without effect: a request counts until it ends. Older configurations contain it."""
    in_flight_load_producer_name: str = ""
    """Without effect: the router has only one count of requests in flight."""

    def __post_init__(self) -> None:
        """Raise ValueError for a negative count or a score outside [0, 1]."""
        if self.idle_threshold < 0:
            raise ValueError(f"idleThreshold is {self.idle_threshold}; write 0 or more")
        if not 0.0 <= self.max_busy_score <= 1.0:
            raise ValueError(f"maxBusyScore is {self.max_busy_score}; write 0 to 1")


class ActiveRequestScorer:
    """A scorer by the router's own count of requests, which is not delayed by scraping."""

    Parameters = ActiveRequestParameters

    def __init__(self, parameters: ActiveRequestParameters, context: plugins.PluginContext) -> None:
        self._idle = parameters.idle_threshold
        self._most_busy = parameters.max_busy_score

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """Return a score per candidate."""
        counts = [candidate.endpoint.in_flight for candidate in candidates]
        most = max(counts, default=0)
        idle = self._idle
        return [
            1.0 if count <= idle else self._most_busy * (most - count) / most for count in counts
        ]


PLUGIN = ActiveRequestScorer
