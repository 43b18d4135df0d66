"""`least-request-picker`: picks the replica with the fewest requests, regardless of scores.

Ties are broken at random.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins, ranking
from kvtier.router.choose.base import Candidate, InferenceRequest


class LeastRequestPicker:
    """A picker by the router's own count of requests, or the engine's if that is higher."""

    Parameters = ranking.PickerParameters

    def __init__(
        self, parameters: ranking.PickerParameters, context: plugins.PluginContext
    ) -> None:
        self._most = parameters.max_num_of_endpoints
        self._random = context.random

    @staticmethod
    def keys(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[float]:
        """Return the requests on each replica; `ranking` describes the use of keys."""
        return [ranking.requests(one) for one in candidates]

    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """Return the candidates by ascending number of requests."""
        keys = self.keys(candidates, scores)
        return ranking.ordered(candidates, keys, self._random)[: self._most]


PLUGIN = LeastRequestPicker
