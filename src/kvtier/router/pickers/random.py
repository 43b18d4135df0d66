"""`random-picker`: anybody, whatever the scores."""

from collections.abc import Sequence

from kvtier.router.choose import ordering, parts
from kvtier.router.choose.base import Candidate, Request


class RandomPicker:
    """Each with the same probability."""

    Parameters = ordering.Parameters

    def __init__(self, parameters: ordering.Parameters, context: parts.Context) -> None:
        self._most = parameters.max_num_of_endpoints
        self._random = context.random

    def pick(
        self, request: Request, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """O(n log n)."""
        return ordering.shuffled(candidates, self._random)[: self._most]


PLUGIN = RandomPicker
