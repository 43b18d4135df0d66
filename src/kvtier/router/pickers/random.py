"""`random-picker`: picks a replica at random, regardless of scores."""

from collections.abc import Sequence

from kvtier.router.choose import plugins, ranking
from kvtier.router.choose.base import Candidate, InferenceRequest


class RandomPicker:
    """A picker with the same probability for every replica."""

    Parameters = ranking.PickerParameters

    def __init__(
        self, parameters: ranking.PickerParameters, context: plugins.PluginContext
    ) -> None:
        self._most = parameters.max_num_of_endpoints
        self._random = context.random

    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """Return the candidates in random order."""
        return ranking.shuffled(candidates, self._random)[: self._most]


PLUGIN = RandomPicker
