"""`precise-prefix-cache-scorer`: prefers the longest prefix held, each block weighted by its tier.

The score is `sum over the matched blocks of weight(fastest tier that holds it) / whole blocks of
the prompt`; it is calculated in tokens, with the same result. The default weights are 1.0 for the
device and 0.8 for RAM, as in llm-d, 0.6 for disk, 0.4 for shared, and 0.2 for the object store and
tiers of other names. A slow tier never counts as much as the device just because its
weight is not configured.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from kvtier.index.fleet.base import DEVICE
from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest
from kvtier.router.choose.tier_names import added_tokens, match_of, tier_called

WEIGHTS: Final[Mapping[str, float]] = {
    DEVICE: 1.0,
    "ram": 0.8,
    "disk": 0.6,
    "shared": 0.4,
    "objectstore": 0.2,
}
_UNKNOWN: Final = 0.2


class PrecisePrefixCacheParameters(plugins.PreciseIndexParameters, frozen=True, kw_only=True):
    """The index and the tier weights; without a producer, the scorer has its own index."""

    prefix_match_info_producer_name: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown tier or a weight outside [0, 1]."""
        super().__post_init__()
        for backend in self.indexer_config.backends:
            tier_called(backend.name)
            if not 0.0 <= backend.weight <= 1.0:
                raise ValueError(f"{backend.name} has weight {backend.weight}; write 0 to 1")


class PrecisePrefixCacheScorer:
    """A scorer by the prefix match of each tier."""

    Parameters = PrecisePrefixCacheParameters

    def __init__(
        self, parameters: PrecisePrefixCacheParameters, context: plugins.PluginContext
    ) -> None:
        self._index = context.index
        self._block_tokens = context.block_tokens
        self._weights = dict(WEIGHTS)
        for backend in parameters.indexer_config.backends:
            self._weights[tier_called(backend.name) or backend.name] = backend.weight

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """Return a score per candidate."""
        return [self._one(candidate) for candidate in candidates]

    def reason(self, request: InferenceRequest, candidate: Candidate) -> str:
        """Return `4096 in device, 8192 in ram of 12300 tokens`."""
        match = match_of(candidate, self._index)
        held = [f"{tokens} in {tier}" for tier, tokens in added_tokens(match)]
        return f"{', '.join(held) or 'none'} of {match.total_tokens} tokens"

    def _one(self, candidate: Candidate) -> float:
        match = match_of(candidate, self._index)
        block_tokens = candidate.endpoint.load.block_tokens or self._block_tokens
        whole = match.total_tokens // block_tokens * block_tokens
        if not whole:
            return 0.0
        weights = self._weights
        weighted = sum(tokens * weights.get(tier, _UNKNOWN) for tier, tokens in added_tokens(match))
        return weighted / whole


PLUGIN = PrecisePrefixCacheScorer
