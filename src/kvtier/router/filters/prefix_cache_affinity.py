"""`prefix-cache-affinity-filter`: keeps the replicas that hold the prompt, unless too busy.

A replica that holds at least the share `affinityThreshold` of the prompt is sticky. If any are,
only those are kept, with two exceptions that keep all: the least busy sticky replica would start
more than `maxTTFTPenaltyMs` later than the least busy other one (0 disables this), where the time
to start is `in-flight tokens / peakPrefillThroughput`; and at random, with probability
`explorationProbability`.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, InferenceRequest
from kvtier.router.choose.tier_names import match_of


class PrefixCacheAffinityParameters(plugins.IndexReaderParameters, frozen=True, kw_only=True):
    """The thresholds; the defaults are those of llm-d for `ttftSource: prefillThroughput`."""

    affinity_threshold: float = 0.80
    exploration_probability: float = 0.0
    max_ttft_penalty_ms: float = msgspec.field(default=18_000.0, name="maxTTFTPenaltyMs")
    ttft_source: Literal["prefillThroughput"] = "prefillThroughput"
    peak_prefill_throughput: float = 15_928.0
    """Tokens per second, for replicas that do not report their prefill rate."""
    in_flight_load_producer_name: str = ""
    """Without effect: the router has only one count of requests in flight."""

    def __post_init__(self) -> None:
        """Raise ValueError for a share outside [0, 1] or an invalid time or rate."""
        if not 0.0 <= self.affinity_threshold <= 1.0:
            raise ValueError("affinityThreshold must be 0 to 1")
        if not 0.0 <= self.exploration_probability <= 1.0:
            raise ValueError("explorationProbability must be 0 to 1")
        if not self.max_ttft_penalty_ms >= 0:
            raise ValueError("maxTTFTPenaltyMs must be 0 or more")
        if not self.peak_prefill_throughput > 0:
            raise ValueError("peakPrefillThroughput must be more than 0")


class PrefixCacheAffinityFilter:
    """A filter by prefix matches and by the router's count of tokens in flight."""

    Parameters = PrefixCacheAffinityParameters

    def __init__(
        self, parameters: PrefixCacheAffinityParameters, context: plugins.PluginContext
    ) -> None:
        self._index = context.index
        self._random = context.random
        self._threshold = parameters.affinity_threshold
        self._exploration = parameters.exploration_probability
        self._penalty_s = parameters.max_ttft_penalty_ms / 1000
        self._prefill = parameters.peak_prefill_throughput

    def keep(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the sticky candidates, or all of them."""
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


PLUGIN = PrefixCacheAffinityFilter
