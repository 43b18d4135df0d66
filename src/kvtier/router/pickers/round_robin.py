"""`round-robin-picker`: one after the other by name, whatever the scores."""

from collections.abc import Sequence

from kvtier.router.choose import plugins, ranking
from kvtier.router.choose.base import Candidate, InferenceRequest


class RoundRobin:
    """Remembers the last name, so that endpoints may come and go. Turns are one for all models."""

    Parameters = ranking.PickerParameters

    def __init__(
        self, parameters: ranking.PickerParameters, context: plugins.PluginContext
    ) -> None:
        self._most = parameters.max_num_of_endpoints
        self._last = ""

    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """O(n log n)."""
        last = self._last
        turn = sorted(candidates, key=lambda one: (one.endpoint.name <= last, one.endpoint.name))
        self._last = turn[0].endpoint.name
        return turn[: self._most]


PLUGIN = RoundRobin
