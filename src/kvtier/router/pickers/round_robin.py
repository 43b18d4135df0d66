"""`round-robin-picker`: picks the replicas in turn, by name, regardless of scores."""

from collections.abc import Sequence

from kvtier.router.choose import plugins, ranking
from kvtier.router.choose.base import Candidate, InferenceRequest


class RoundRobinPicker:
    """A picker that takes turns, shared by all models.

    It remembers the last name instead of a position, so that replicas can be added and removed.
    """

    Parameters = ranking.PickerParameters

    def __init__(
        self, parameters: ranking.PickerParameters, context: plugins.PluginContext
    ) -> None:
        self._most = parameters.max_num_of_endpoints
        self._last = ""

    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """Return the candidates in turn, beginning after the last one picked."""
        last = self._last
        turn = sorted(candidates, key=lambda one: (one.endpoint.name <= last, one.endpoint.name))
        self._last = turn[0].endpoint.name
        return turn[: self._most]


PLUGIN = RoundRobinPicker
