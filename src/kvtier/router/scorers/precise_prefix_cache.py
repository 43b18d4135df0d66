"""`precise-prefix-cache-scorer`: the prefix held, each block weighted by its tier.

`sum over the matched blocks of weight(fastest tier that holds it) / whole blocks of the prompt`,
in tokens: the answer is the same. Weights: device 1.0, RAM 0.8 as in the field, and below them
disk 0.6, shared 0.4, object store 0.2; a tier of another name counts 0.2. Disk never counts as
the device does only because nobody configured it.
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


class PrecisePrefixCache:
    """By what an index knows, tier by tier."""

    class Parameters(plugins.PreciseIndexParameters, frozen=True, kw_only=True):
        """The index is its own unless a producer is named."""

        prefix_match_info_producer_name: str = ""

        def __post_init__(self) -> None:
            """Refuse unknown tiers and weights that are none."""
            super().__post_init__()
            for backend in self.indexer_config.backends:
                tier_called(backend.name)
                if not 0.0 <= backend.weight <= 1.0:
                    raise ValueError(f"{backend.name} weighs {backend.weight}; write 0 to 1")

    def __init__(self, parameters: Parameters, context: plugins.PluginContext) -> None:
        self._index = context.index
        self._block_tokens = context.block_tokens
        self._weights = dict(WEIGHTS)
        for backend in parameters.indexer_config.backends:
            self._weights[tier_called(backend.name) or backend.name] = backend.weight

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """O(n) in candidates and tiers."""
        return [self._one(candidate) for candidate in candidates]

    def reason(self, request: InferenceRequest, candidate: Candidate) -> str:
        """`4096 in device, 8192 more in ram, of 12300 tokens`."""
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


PLUGIN = PrecisePrefixCache
