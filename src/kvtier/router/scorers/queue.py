"""`queue-scorer`: the shortest queue.

`(most - waiting) / (most - least)` over the candidates, 1 where all wait alike.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest
from kvtier.router.choose.ranking import least_is_best


class Queue:
    """By the requests that wait in the engine."""

    Parameters = plugins.PluginParameters

    def __init__(
        self, parameters: plugins.PluginParameters, context: plugins.PluginContext
    ) -> None:
        """Has nothing to set."""

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """O(n)."""
        return least_is_best([candidate.endpoint.waiting for candidate in candidates])


PLUGIN = Queue
