"""`expected-ttft-scorer`: prefers the replicas with the shortest expected time to first token.

    seconds = ahead / prefill + missing / prefill + sum over tiers of added / load + running
    cost = seconds + (computeWeight - 1) * missing / mean
    score = least cost of all candidates / cost

* ahead: prompt tokens that the replica computes before this request's. These are the pending
  tokens of this router's requests, plus, for each request that waits in the engine beyond those in
  flight from this router, as many tokens as this request has, since their number is unknown. If
  pending tokens are not counted, requests in flight that the engine does not report as running
  count as waiting.
* missing: prompt tokens that no tier holds; at least one, as the last token is always computed.
* added: tokens that a tier holds beyond the faster ones. Loading is never estimated to be slower
  than computing, because an engine would then compute instead.
* running: `runningSeconds` for each request on the replica, its share of each step.
* computeWeight: the weight of computing relative to waiting. While a request computes, others
  wait, and the blocks it computes evict blocks that others need; a waiting request costs the others
  nothing. With a weight of 1, requests spread over the fleet until every replica caches everything
  and evicts it again. The extra cost is the same wherever the request computes, so it is converted
  at `mean`, the mean prefill rate of all candidates. At its own rate, a replica that was once
  measured as slow would stay idle next to a long queue and would never be measured again.

Rates are those that the replica reports. A missing prefill rate is replaced by the mean of the
other candidates' rates, or by `prefillTokensPerSecond`. A missing load rate is replaced by a
multiple of the prefill rate, since both depend on the model's size: 16 for RAM, 4 for disk, 2 for
shared, 1.5 for the object store, 1 for any other tier.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from kvtier.index.fleet.base import DEVICE, Match
from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest
from kvtier.router.choose.tier_names import added_tokens, match_of

LOAD_BY_PREFILL: Final[Mapping[str, float]] = {
    "ram": 16.0,
    "disk": 4.0,
    "shared": 2.0,
    "objectstore": 1.5,
}
"""The assumed ratio of a tier's load rate to the prefill rate, if it has not been measured."""

_FASTEST_TOKENS_PER_S: Final = 1e9
_LONGEST_S: Final = 3600.0
_MOST_WEIGHT: Final = 100.0


class ExpectedTTFTParameters(plugins.IndexReaderParameters, frozen=True, kw_only=True):
    """The weights, and values to use where nothing has been measured."""

    prefill_tokens_per_second: float = 8_000.0
    running_seconds: float = 0.01
    compute_weight: float = 3.0

    def __post_init__(self) -> None:
        """Raise ValueError for a rate, time or weight outside its range."""
        if not _believable(self.prefill_tokens_per_second):
            raise ValueError("prefillTokensPerSecond must be 1 or more")
        if not 0 <= self.running_seconds <= _LONGEST_S:
            raise ValueError("runningSeconds must be 0 or more")
        if not 1 <= self.compute_weight <= _MOST_WEIGHT:
            raise ValueError("computeWeight must be 1 to 100")


class ExpectedTTFTScorer:
    """A scorer by the load, the rates and the prefix match of each replica."""

    Parameters = ExpectedTTFTParameters

    def __init__(self, parameters: ExpectedTTFTParameters, context: plugins.PluginContext) -> None:
        self._index = context.index
        self._prefill = parameters.prefill_tokens_per_second
        self._mean_prefill = self._prefill
        """Mean prefill rate of the last candidates, for those without a rate and for the extra
        cost of computing."""
        self._running_s = parameters.running_seconds
        self._extra_weight = parameters.compute_weight - 1.0

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """Return a score per candidate."""
        self._mean_prefill = self._mean_rate(candidates)
        costs = [sum(self._terms(request, one)) for one in candidates]
        least = min(costs, default=0.0)
        return [least / cost for cost in costs]

    def reason(self, request: InferenceRequest, candidate: Candidate) -> str:
        """Return `0.31 s (cost 0.71): 0.05 waiting, 0.20 computing, 0.05 loading, 0.01 running`."""
        *terms, extra = self._terms(request, candidate)
        words = ("waiting", "computing", "loading", "running")
        told = ", ".join(f"{term:.3f} {word}" for term, word in zip(terms, words, strict=True))
        return f"{sum(terms):.3f} s (cost {sum(terms) + extra:.3f}): {told}"

    def _mean_rate(self, candidates: Sequence[Candidate]) -> float:
        rates = [
            rate
            for candidate in candidates
            if _believable(rate := candidate.endpoint.load.prefill_tokens_per_s)
        ]
        return sum(rates) / len(rates) if rates else self._prefill

    def _terms(
        self, request: InferenceRequest, candidate: Candidate
    ) -> tuple[float, float, float, float, float]:
        """Return the seconds of waiting, computing, loading and running, and the extra cost."""
        endpoint = candidate.endpoint
        load = endpoint.load
        measured = load.prefill_tokens_per_s
        prefill = measured if _believable(measured) else self._mean_prefill
        match = match_of(candidate, self._index)
        total = match.total_tokens or request.prompt.tokens
        missing = max(1, total - match.best_tokens)
        requests = max(load.waiting + load.running, endpoint.in_flight)
        return (
            _ahead_tokens(endpoint, total) / prefill,
            missing / prefill,
            _load_s(match, endpoint, prefill) if match.tokens else 0.0,
            requests * self._running_s,
            self._extra_weight * missing / self._mean_prefill,
        )


def _believable(tokens_per_s: float) -> bool:
    """Return True if a rate is plausible; metrics may be wrong, and NaN fails the comparison."""
    return 1.0 <= tokens_per_s <= _FASTEST_TOKENS_PER_S


def _ahead_tokens(endpoint: Endpoint, prompt_tokens: int) -> int:
    load, in_flight = endpoint.load, endpoint.in_flight
    if endpoint.pending_tokens is None:
        pending = 0
        waiting = max(load.waiting, in_flight - load.running)
    else:
        pending = endpoint.pending_tokens
        waiting = max(0, load.waiting - in_flight)
    return pending + waiting * prompt_tokens


def _load_s(match: Match, endpoint: Endpoint, prefill: float) -> float:
    seconds = 0.0
    for name, tokens in added_tokens(match):
        if name == DEVICE:
            continue
        tier = endpoint.load.tiers.get(name)
        rate = tier.load_tokens_per_s if tier is not None else 0.0
        if not _believable(rate):
            rate = prefill * LOAD_BY_PREFILL.get(name, 1.0)
        seconds += tokens / max(rate, prefill)
    return seconds


PLUGIN = ExpectedTTFTScorer
