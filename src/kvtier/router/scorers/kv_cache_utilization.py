"""`kv-cache-utilization-scorer`: the most room in the device's KV cache.

`1 - kv_usage`.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest


class KVCacheUtilization:
    """By the share of the KV cache in use, as last scraped."""

    Parameters = plugins.PluginParameters

    def __init__(
        self, parameters: plugins.PluginParameters, context: plugins.PluginContext
    ) -> None:
        """Has nothing to set."""

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """O(n)."""
        return [1.0 - candidate.endpoint.load.kv_usage for candidate in candidates]


PLUGIN = KVCacheUtilization
