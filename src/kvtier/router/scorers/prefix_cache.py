"""`prefix-cache-scorer`: prefers the longest prefix held, in one tier or in any.

The score is `ratio = matched blocks / whole blocks of the prompt`, and 0 for a prompt shorter than
a block. With a `matchLengthWeight` of w it is
`w * min(1, matched tokens / matchLengthScaleTokens)**2 + (1 - w) * ratio`.

A profile can have several instances, each with its own index or with one that a producer declares.
The tier of an instance is its parameter `tier`, else the one that its name or its index's name
hints at (`cpu-prefix-cache-scorer`), else any. A tier includes the faster ones, because blocks on
the device need not be loaded from RAM.
"""

from collections.abc import Sequence

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest
from kvtier.router.choose.tier_names import match_of, tokens_in


class PrefixCacheParameters(plugins.EstimatedIndexParameters, frozen=True, kw_only=True):
    """The match weights, and the size of the index if the scorer has its own (the older API)."""

    prefix_match_info_producer_name: str = ""
    match_length_weight: float = 0.0
    match_length_scale_tokens: int = 8192

    def __post_init__(self) -> None:
        """Raise ValueError for a weight outside [0, 1] or a scale below 1."""
        super().__post_init__()
        if not 0.0 <= self.match_length_weight <= 1.0:
            raise ValueError(f"matchLengthWeight is {self.match_length_weight}; write 0 to 1")
        if self.match_length_weight and self.match_length_scale_tokens < 1:
            raise ValueError("matchLengthScaleTokens is 0; write 1 or more")


class PrefixCacheScorer:
    """A scorer by the prefix match in one tier or any."""

    Parameters = PrefixCacheParameters

    def __init__(self, parameters: PrefixCacheParameters, context: plugins.PluginContext) -> None:
        self._index = context.index
        self._tier = context.tier
        self._block_tokens = context.block_tokens
        self._most_tokens = context.max_match_tokens
        self._length_weight = parameters.match_length_weight
        self._scale_tokens = parameters.match_length_scale_tokens

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """Return a score per candidate."""
        return [self._one(candidate) for candidate in candidates]

    def reason(self, request: InferenceRequest, candidate: Candidate) -> str:
        """Return `8192 of 12000 tokens in ram`."""
        match = match_of(candidate, self._index)
        held = tokens_in(match, self._tier)
        return f"{held} of {match.total_tokens} tokens in {self._tier or 'any tier'}"

    def _one(self, candidate: Candidate) -> float:
        match = match_of(candidate, self._index)
        held = tokens_in(match, self._tier)
        total = match.total_tokens
        if self._most_tokens:
            held, total = min(held, self._most_tokens), min(total, self._most_tokens)
        block_tokens = candidate.endpoint.load.block_tokens or self._block_tokens
        blocks = total // block_tokens
        if not blocks:
            return 0.0
        matched = held // block_tokens
        ratio = matched / blocks
        if not self._length_weight:
            return ratio
        length = min(1.0, matched * block_tokens / self._scale_tokens)
        return self._length_weight * length**2 + (1.0 - self._length_weight) * ratio


PLUGIN = PrefixCacheScorer
