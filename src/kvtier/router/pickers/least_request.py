"""`least-request-picker`: the fewest requests, whatever the scores; ties at random."""

from collections.abc import Sequence

from kvtier.router.choose import ordering, parts
from kvtier.router.choose.base import Candidate, Request


class LeastRequest:
    """By the router's own count, or the engine's where that is more."""

    Parameters = ordering.Parameters

    def __init__(self, parameters: ordering.Parameters, context: parts.Context) -> None:
        self._most = parameters.max_num_of_endpoints
        self._random = context.random

    @staticmethod
    def keys(candidates: Sequence[Candidate], scores: Sequence[float]) -> list[float]:
        """What it goes by; see `ordering`."""
        return [ordering.requests(one) for one in candidates]

    def pick(
        self, request: Request, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """O(n log n)."""
        keys = self.keys(candidates, scores)
        return ordering.ordered(candidates, keys, self._random)[: self._most]


PLUGIN = LeastRequest
