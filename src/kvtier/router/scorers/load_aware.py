"""`load-aware-scorer`: prefers the replicas with a short queue, on an absolute scale.

The score is `0.5 * (1 - waiting / threshold)`, and 0 beyond the threshold.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest


class LoadAwareParameters(plugins.PluginParameters, frozen=True, kw_only=True):
    """The queue length with a score of 0."""

    threshold: int = 128

    def __post_init__(self) -> None:
        """Raise ValueError for a threshold below 1."""
        if self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}; write 1 or more")


class LoadAwareScorer:
    """A scorer by the requests waiting in the engine, independent of the other candidates."""

    Parameters = LoadAwareParameters

    def __init__(self, parameters: LoadAwareParameters, context: plugins.PluginContext) -> None:
        self._threshold = parameters.threshold

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """Return a score per candidate."""
        threshold = self._threshold
        return [
            0.5 * (1.0 - min(candidate.endpoint.waiting, threshold) / threshold)
            for candidate in candidates
        ]


PLUGIN = LoadAwareScorer
