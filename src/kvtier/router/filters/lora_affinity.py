"""`lora-affinity-filter`: where an endpoint has the adapter loaded, only such endpoints.

All stay where none has it: one of them will load it.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest


class LoraAffinityFilter:
    """By the adapters that the engine reports."""

    Parameters = plugins.PluginParameters

    def __init__(
        self, parameters: plugins.PluginParameters, context: plugins.PluginContext
    ) -> None:
        """Has nothing to set."""

    def keep(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[Candidate]:
        """O(n)."""
        model = request.model
        loaded = [one for one in candidates if model in one.endpoint.load.adapters]
        return loaded or list(candidates)


PLUGIN = LoraAffinityFilter
