"""`least-request-picker`: the fewest requests, whatever the scores; ties at random."""

from collections.abc import Sequence

from kvtier.router.choose import plugins, ranking
from kvtier.router.choose.base import Candidate, InferenceRequest


class LeastRequest:
    """By the router's own count, or the engine's where that is more."""

    Parameters = ranking.PickerParameters

    def __init__(
        self, parameters: ranking.PickerParameters, context: plugins.PluginContext
    ) -> None:
        self._most = parameters.max_num_of_endpoints
        self._random = context.random

    @staticmethod
    def keys(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[float]:
        """What it goes by; see `ordering`."""
        return [ranking.requests(one) for one in candidates]

    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """O(n log n)."""
        keys = self.keys(candidates, scores)
        return ranking.ordered(candidates, keys, self._random)[: self._most]


PLUGIN = LeastRequest
