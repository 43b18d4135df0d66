"""`lora-affinity-scorer`: endpoints that have the adapter loaded.

1 where the model asked for is a loaded adapter; 0.8 elsewhere while fewer than `maxAdapters` are
loaded (0: no bound is known), else 0.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest


class LoraAffinity:
    """By the adapters that the engine reports."""

    class Parameters(plugins.PluginParameters, frozen=True, kw_only=True):
        """`maxAdapters` is kvtier's own: what the engines run with as --max-loras."""

        max_adapters: int = 0

        def __post_init__(self) -> None:
            """Refuse what is no number of adapters."""
            if self.max_adapters < 0:
                raise ValueError(f"maxAdapters is {self.max_adapters}; write 0 or more")

    def __init__(self, parameters: Parameters, context: plugins.PluginContext) -> None:
        self._most = parameters.max_adapters

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """O(n)."""
        return [self._one(request.model, candidate) for candidate in candidates]

    def _one(self, model: str, candidate: Candidate) -> float:
        endpoint = candidate.endpoint
        adapters = endpoint.load.adapters
        if model in adapters:
            return 1.0
        return 0.8 if not self._most or len(adapters) < self._most else 0.0


PLUGIN = LoraAffinity
