"""`power-of-two-picker`: the less busy of two at random, whatever the scores.

Source: Mitzenmacher, "The power of two choices in randomized load balancing", 2001. Unlike the
fewest requests of all, it does not send everything to one endpoint while counts are stale.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins, ranking
from kvtier.router.choose.base import Candidate, InferenceRequest


class PowerOfTwo:
    """The other of the two is the first to fall back to."""

    Parameters = ranking.PickerParameters

    def __init__(
        self, parameters: ranking.PickerParameters, context: plugins.PluginContext
    ) -> None:
        self._most = parameters.max_num_of_endpoints
        self._random = context.random

    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """O(n log n)."""
        mixed = ranking.shuffled(candidates, self._random)
        two = sorted(mixed[:2], key=ranking.requests)
        return [*two, *mixed[2:]][: self._most]


PLUGIN = PowerOfTwo
