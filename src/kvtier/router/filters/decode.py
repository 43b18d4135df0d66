"""`decode-filter`: keeps the replicas that decode, according to the label `llm-d.ai/role`.

A replica without the label has all roles and is kept.
"""

from collections.abc import Sequence
from typing import Final

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest

ROLE: Final = "llm-d.ai/role"
_DECODING: Final = frozenset({None, "decode", "both", "prefill-decode", "encode-prefill-decode"})


class DecodeFilter:
    """A filter by the role in the replicas' labels."""

    Parameters = plugins.PluginParameters

    def __init__(
        self, parameters: plugins.PluginParameters, context: plugins.PluginContext
    ) -> None:
        """Ignore both arguments: the plugin has no settings."""

    def keep(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates that decode."""
        return [one for one in candidates if one.endpoint.labels.get(ROLE) in _DECODING]


PLUGIN = DecodeFilter
