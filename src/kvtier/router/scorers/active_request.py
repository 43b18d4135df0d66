"""`active-request-scorer`: the fewest requests that this router has sent and not seen end.

1 up to `idleThreshold`; above it `maxBusyScore * (most - in_flight) / most`.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest


class ActiveRequest:
    """By the router's own count, which no scrape delays."""

    class Parameters(plugins.PluginParameters, frozen=True, kw_only=True):
        """A `maxBusyScore` below 1 sets idle endpoints apart from busy ones."""

        idle_threshold: int = 0
        max_busy_score: float = 1.0
        request_timeout: str = ""
        """Of old configurations; the count follows the requests themselves."""
        in_flight_load_producer_name: str = ""
        """There is one count, the router's own."""

        def __post_init__(self) -> None:
            """Refuse what is outside of a score."""
            if self.idle_threshold < 0:
                raise ValueError(f"idleThreshold is {self.idle_threshold}; write 0 or more")
            if not 0.0 <= self.max_busy_score <= 1.0:
                raise ValueError(f"maxBusyScore is {self.max_busy_score}; write 0 to 1")

    def __init__(self, parameters: Parameters, context: plugins.PluginContext) -> None:
        self._idle = parameters.idle_threshold
        self._most_busy = parameters.max_busy_score

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """O(n)."""
        counts = [candidate.endpoint.in_flight for candidate in candidates]
        most = max(counts, default=0)
        idle = self._idle
        return [
            1.0 if count <= idle else self._most_busy * (most - count) / most for count in counts
        ]


PLUGIN = ActiveRequest
