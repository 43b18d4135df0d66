"""`kv-cache-utilization-scorer`: prefers the replicas with the most room in the device's KV cache.

The score is `1 - kv_usage`.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest


class KVCacheUtilizationScorer:
    """A scorer by the share of the KV cache in use at the last scrape."""

    Parameters = plugins.PluginParameters

    def __init__(
        self, parameters: plugins.PluginParameters, context: plugins.PluginContext
    ) -> None:
        """Ignore both arguments: the plugin has no settings."""

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """Return a score per candidate."""
        return [1.0 - candidate.endpoint.load.kv_usage for candidate in candidates]


PLUGIN = KVCacheUtilizationScorer
