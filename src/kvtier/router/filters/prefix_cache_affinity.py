"""`prefix-cache-affinity-filter`: only endpoints that hold the prompt, unless they are too busy.

Sticky are those that hold `affinityThreshold` of the prompt or more; where there are any, only
they stay. All stay where the least busy sticky one would start more than `maxTTFTPenaltyMs` later
than the least busy other one: `in-flight tokens / peakPrefillThroughput` (0: always stick), and
with probability `explorationProbability`.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest
from kvtier.router.choose.tier_names import match_of


class PrefixCacheAffinity:
    """By what an index knows and by the router's own count of tokens."""

    class Parameters(plugins.IndexReaderParameters, frozen=True, kw_only=True):
        """Defaults are the field's, for its source of times that measures throughput."""

        affinity_threshold: float = 0.80
        exploration_probability: float = 0.0
        max_ttft_penalty_ms: float = msgspec.field(default=18_000.0, name="maxTTFTPenaltyMs")
        ttft_source: Literal["prefillThroughput"] = "prefillThroughput"
        peak_prefill_throughput: float = 15_928.0
        """Tokens a second, for endpoints that do not report their own."""
        in_flight_load_producer_name: str = ""
        """There is one count, the router's own."""

        def __post_init__(self) -> None:
            """Refuse what is no share and no rate."""
            if not 0.0 <= self.affinity_threshold <= 1.0:
                raise ValueError("affinityThreshold has to be 0 to 1")
            if not 0.0 <= self.exploration_probability <= 1.0:
                raise ValueError("explorationProbability has to be 0 to 1")
            if not self.max_ttft_penalty_ms >= 0:
                raise ValueError("maxTTFTPenaltyMs has to be 0 or more")
            if not self.peak_prefill_throughput > 0:
                raise ValueError("peakPrefillThroughput has to be more than 0")

    def __init__(self, parameters: Parameters, context: plugins.PluginContext) -> None:
        self._index = context.index
        self._random = context.random
        self._threshold = parameters.affinity_threshold
        self._exploration = parameters.exploration_probability
        self._penalty_s = parameters.max_ttft_penalty_ms / 1000
        self._prefill = parameters.peak_prefill_throughput

    def keep(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[Candidate]:
        """O(n)."""
        everyone = list(candidates)
        if len(everyone) <= 1 or self._threshold <= 0:
            return everyone
        if self._exploration and self._random.random() < self._exploration:
            return everyone
        holds = [match_of(one, self._index).ratio() >= self._threshold for one in everyone]
        sticky = [one for one, held in zip(everyone, holds, strict=True) if held]
        others = [one for one, held in zip(everyone, holds, strict=True) if not held]
        if not sticky:
            return everyone
        if self._penalty_s and others:
            later_s = min(map(self._wait_s, sticky)) - min(map(self._wait_s, others))
            if later_s > self._penalty_s:
                return everyone
        return sticky

    def _wait_s(self, candidate: Candidate) -> float:
        endpoint = candidate.endpoint
        return endpoint.in_flight_tokens / (endpoint.load.prefill_tokens_per_s or self._prefill)


PLUGIN = PrefixCacheAffinity
