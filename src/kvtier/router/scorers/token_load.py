"""`token-load-scorer`: prefers the replicas with the fewest tokens in flight.

The score is `1 - min(1, in_flight_tokens / queueThresholdTokens)`.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest


class TokenLoadParameters(plugins.PluginParameters, frozen=True, kw_only=True):
    """The number of tokens with a score of 0; the default is 128 requests of 32 Ki tokens."""

    queue_threshold_tokens: int = 4_194_304
    in_flight_load_producer_name: str = ""
    """Without effect: the router has only one count of tokens in flight."""

    def __post_init__(self) -> None:
        """Raise ValueError for a threshold below 1."""
        if self.queue_threshold_tokens < 1:
            raise ValueError(
                f"queueThresholdTokens is {self.queue_threshold_tokens}; write 1 or more"
            )


class TokenLoadScorer:
    """A scorer by the router's own count of prompt tokens and allowed output tokens."""

    Parameters = TokenLoadParameters

    def __init__(self, parameters: TokenLoadParameters, context: plugins.PluginContext) -> None:
        self._threshold = parameters.queue_threshold_tokens

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """Return a score per candidate."""
        threshold = self._threshold
        return [
            1.0 - min(candidate.endpoint.in_flight_tokens, threshold) / threshold
            for candidate in candidates
        ]


PLUGIN = TokenLoadScorer
