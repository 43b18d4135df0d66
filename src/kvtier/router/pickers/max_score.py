"""`max-score-picker`: picks the replica with the highest score, then the next highest.

Ties are broken at random.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins, ranking
from kvtier.router.choose.base import Candidate, InferenceRequest


class MaxScorePicker:
    """The picker by score, which a profile without a picker uses."""

    Parameters = ranking.PickerParameters

    def __init__(
        self, parameters: ranking.PickerParameters, context: plugins.PluginContext
    ) -> None:
        self._most = parameters.max_num_of_endpoints
        self._random = context.random

    @staticmethod
    def keys(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[float]:
        """Return the negated scores; `ranking` describes the use of keys."""
        return [-score for score in scores]

    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """Return the candidates by descending score."""
        keys = self.keys(candidates, scores)
        return ranking.ordered(candidates, keys, self._random)[: self._most]


PLUGIN = MaxScorePicker
