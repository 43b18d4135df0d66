"""`lora-affinity-filter`: keeps the replicas that have the requested LoRA adapter loaded.

If no replica has loaded it, all are kept, and one of them will load it.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest


class LoraAffinityFilter:
    """A filter by the adapters that the engines report."""

    Parameters = plugins.PluginParameters

    def __init__(
        self, parameters: plugins.PluginParameters, context: plugins.PluginContext
    ) -> None:
        """Ignore both arguments: the plugin has no settings."""

    def keep(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates with the adapter, or all if there are none."""
        model = request.model
        loaded = [one for one in candidates if model in one.endpoint.load.adapters]
        return loaded or list(candidates)


PLUGIN = LoraAffinityFilter
