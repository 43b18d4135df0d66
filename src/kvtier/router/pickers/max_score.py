"""`max-score-picker`: the highest score, ties at random; behind it the next highest."""

from collections.abc import Sequence

from kvtier.router.choose import plugins, ranking
from kvtier.router.choose.base import Candidate, InferenceRequest


class MaxScore:
    """The picker where a profile names none."""

    Parameters = ranking.PickerParameters

    def __init__(
        self, parameters: ranking.PickerParameters, context: plugins.PluginContext
    ) -> None:
        self._most = parameters.max_num_of_endpoints
        self._random = context.random

    @staticmethod
    def keys(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[float]:
        """What it goes by; see `ordering`."""
        return [-score for score in scores]

    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """O(n log n)."""
        keys = self.keys(candidates, scores)
        return ranking.ordered(candidates, keys, self._random)[: self._most]


PLUGIN = MaxScore
