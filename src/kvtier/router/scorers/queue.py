"""`queue-scorer`: the shortest queue.

`(most - waiting) / (most - least)` over the candidates, 1 where all wait alike.
"""

from collections.abc import Sequence

from kvtier.router.choose import parts
from kvtier.router.choose.base import Candidate, Request
from kvtier.router.choose.scaling import least_is_best


class Queue:
    """By the requests that wait in the engine."""

    Parameters = parts.Parameters

    def __init__(self, parameters: parts.Parameters, context: parts.Context) -> None:
        """Has nothing to set."""

    def score(self, request: Request, candidates: Sequence[Candidate]) -> list[float]:
        """O(n)."""
        return least_is_best([candidate.endpoint.waiting for candidate in candidates])


PLUGIN = Queue
