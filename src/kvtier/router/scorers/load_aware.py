"""`load-aware-scorer`: an absolute measure of the queue, at most one half.

`0.5 * (1 - waiting / threshold)`, 0 beyond the threshold.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest


class LoadAware:
    """By the requests that wait in the engine, whatever the other candidates do."""

    class Parameters(plugins.PluginParameters, frozen=True, kw_only=True):
        """`threshold`: requests that are too many."""

        threshold: int = 128

        def __post_init__(self) -> None:
            """A threshold of none would divide by it."""
            if self.threshold < 1:
                raise ValueError(f"threshold is {self.threshold}; write 1 or more")

    def __init__(self, parameters: Parameters, context: plugins.PluginContext) -> None:
        self._threshold = parameters.threshold

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """O(n)."""
        threshold = self._threshold
        return [
            0.5 * (1.0 - min(candidate.endpoint.waiting, threshold) / threshold)
            for candidate in candidates
        ]


PLUGIN = LoadAware
