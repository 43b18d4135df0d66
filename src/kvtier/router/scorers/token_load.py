"""`token-load-scorer`: the fewest tokens in flight.

`1 - min(1, in_flight_tokens / queueThresholdTokens)`.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest


class TokenLoad:
    """By the router's own count of prompt tokens and allowed output tokens."""

    class Parameters(plugins.PluginParameters, frozen=True, kw_only=True):
        """The default is 128 requests of 32 Ki tokens."""

        queue_threshold_tokens: int = 4_194_304
        in_flight_load_producer_name: str = ""
        """There is one count, the router's own."""

        def __post_init__(self) -> None:
            """A threshold of none would divide by it."""
            if self.queue_threshold_tokens < 1:
                raise ValueError(
                    f"queueThresholdTokens is {self.queue_threshold_tokens}; write 1 or more"
                )

    def __init__(self, parameters: Parameters, context: plugins.PluginContext) -> None:
        self._threshold = parameters.queue_threshold_tokens

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """O(n)."""
        threshold = self._threshold
        return [
            1.0 - min(candidate.endpoint.in_flight_tokens, threshold) / threshold
            for candidate in candidates
        ]


PLUGIN = TokenLoad
