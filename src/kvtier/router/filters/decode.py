"""`decode-filter`: endpoints that decode, by the label `llm-d.ai/role`.

Those without the label stay: they do everything.
"""

from collections.abc import Sequence
from typing import Final

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest

ROLE: Final = "llm-d.ai/role"
_DECODING: Final = frozenset({None, "decode", "both", "prefill-decode", "encode-prefill-decode"})


class Decode:
    """By labels alone."""

    Parameters = plugins.PluginParameters

    def __init__(
        self, parameters: plugins.PluginParameters, context: plugins.PluginContext
    ) -> None:
        """Has nothing to set."""

    def keep(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[Candidate]:
        """O(n)."""
        return [one for one in candidates if one.endpoint.labels.get(ROLE) in _DECODING]


PLUGIN = Decode
