"""`round-robin-picker`: one after the other by name, whatever the scores."""

from collections.abc import Sequence

from kvtier.router.choose import ordering, parts
from kvtier.router.choose.base import Candidate, Request


class RoundRobin:
    """Remembers the last name, so that endpoints may come and go. Turns are one for all models."""

    Parameters = ordering.Parameters

    def __init__(self, parameters: ordering.Parameters, context: parts.Context) -> None:
        self._most = parameters.max_num_of_endpoints
        self._last = ""

    def pick(
        self, request: Request, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """O(n log n)."""
        last = self._last
        turn = sorted(candidates, key=lambda one: (one.endpoint.name <= last, one.endpoint.name))
        self._last = turn[0].endpoint.name
        return turn[: self._most]


PLUGIN = RoundRobin
