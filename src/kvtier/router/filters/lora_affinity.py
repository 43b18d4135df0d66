"""`lora-affinity-filter`: where an endpoint has the adapter loaded, only such endpoints.

All stay where none has it: one of them will load it.
"""

from collections.abc import Sequence

from kvtier.router.choose import parts
from kvtier.router.choose.base import Candidate, Request


class LoraAffinityFilter:
    """By the adapters that the engine reports."""

    Parameters = parts.Parameters

    def __init__(self, parameters: parts.Parameters, context: parts.Context) -> None:
        """Has nothing to set."""

    def keep(self, request: Request, candidates: Sequence[Candidate]) -> list[Candidate]:
        """O(n)."""
        model = request.model
        loaded = [one for one in candidates if model in one.endpoint.load.adapters]
        return loaded or list(candidates)


PLUGIN = LoraAffinityFilter
