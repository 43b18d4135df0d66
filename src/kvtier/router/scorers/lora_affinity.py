"""`lora-affinity-scorer`: prefers the replicas that have the requested LoRA adapter loaded.

The score is 1 if the requested model is a loaded adapter, else 0.8 if fewer than `maxAdapters`
adapters are loaded (0: no limit is known), else 0.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest


class LoraAffinityParameters(plugins.PluginParameters, frozen=True, kw_only=True):
    """`maxAdapters`, an extension of kvtier, is the --max-loras that the engines run with."""

    max_adapters: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for a negative number of adapters."""
        if self.max_adapters < 0:
            raise ValueError(f"maxAdapters is {self.max_adapters}; write 0 or more")


class LoraAffinityScorer:
    """A scorer by the adapters that the engine reports."""

    Parameters = LoraAffinityParameters

    def __init__(self, parameters: LoraAffinityParameters, context: plugins.PluginContext) -> None:
        self._most = parameters.max_adapters

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """Return a score per candidate."""
        return [self._one(request.model, candidate) for candidate in candidates]

    def _one(self, model: str, candidate: Candidate) -> float:
        endpoint = candidate.endpoint
        adapters = endpoint.load.adapters
        if model in adapters:
            return 1.0
        return 0.8 if not self._most or len(adapters) < self._most else 0.0


PLUGIN = LoraAffinityScorer
