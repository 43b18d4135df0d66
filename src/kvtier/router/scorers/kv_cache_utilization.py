"""`kv-cache-utilization-scorer`: the most room in the device's KV cache.

`1 - kv_usage`.
"""

from collections.abc import Sequence

from kvtier.router.choose import parts
from kvtier.router.choose.base import Candidate, Request


class KVCacheUtilization:
    """By the share of the KV cache in use, as last scraped."""

    Parameters = parts.Parameters

    def __init__(self, parameters: parts.Parameters, context: parts.Context) -> None:
        """Has nothing to set."""

    def score(self, request: Request, candidates: Sequence[Candidate]) -> list[float]:
        """O(n)."""
        return [1.0 - candidate.endpoint.load.kv_usage for candidate in candidates]


PLUGIN = KVCacheUtilization
