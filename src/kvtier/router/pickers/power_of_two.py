"""`power-of-two-picker`: picks the less busy of two random replicas, regardless of scores.

Source: Mitzenmacher, "The power of two choices in randomized load balancing", 2001. Unlike
`least-request-picker`, it does not send all requests to one replica while its counts are stale.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins, ranking
from kvtier.router.choose.base import Candidate, InferenceRequest


class PowerOfTwoPicker:
    """A picker of the less busy of two replicas; the other one is the first fallback."""

    Parameters = ranking.PickerParameters

    def __init__(
        self, parameters: ranking.PickerParameters, context: plugins.PluginContext
    ) -> None:
        self._most = parameters.max_num_of_endpoints
        self._random = context.random

    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """Return the two drawn candidates by requests, then the others in random order."""
        mixed = ranking.shuffled(candidates, self._random)
        two = sorted(mixed[:2], key=ranking.requests)
        return [*two, *mixed[2:]][: self._most]


PLUGIN = PowerOfTwoPicker
