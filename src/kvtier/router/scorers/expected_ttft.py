"""`expected-ttft-scorer`: the seconds to the first token, as far as can be told.

    seconds = ahead / prefill + missing / prefill + sum over tiers of added / load + running
    cost = seconds + (computeWeight - 1) * missing / usual
    score = least cost of all candidates / cost

* ahead: prompt tokens to compute before this request's: those pending of this router, and for
  each request that waits in the engine beyond those in flight from here as many as this one has:
  nobody tells theirs. Where pending tokens are not counted, requests in flight that the engine
  does not report as running count as waiting.
* missing: tokens of the prompt that no tier holds, one at least: the last is always computed.
* added: what a tier holds beyond the faster ones. Loading is never reckoned slower than
  computing: an engine that knows better computes.
* running: `runningSeconds` for each request on the endpoint, a share of each step.
* computeWeight: what a request computes, others wait for, and what it leaves in the cache pushes
  out what others need; who waits takes nothing from anybody. Counted once, requests spread over
  the fleet until every replica holds everything and nothing stays. What is computed beside costs
  everybody the same, so it is reckoned at the usual rate of all candidates: at its own, a replica
  that was once measured as slow would stand idle, unmeasured ever after, beside a long queue.

Rates are those that the endpoint reports. Prefill: else the mean of what other candidates
report, else `prefillTokensPerSecond`. Load: else a multiple of the prefill rate (both follow
the model's size): RAM 16, disk 4, shared 2, object store 1.5, any other tier 1.
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
"""How much faster a tier is loaded than computed, where nobody has measured it."""

_FASTEST_TOKENS_PER_S: Final = 1e9
_LONGEST_S: Final = 3600.0
_MOST_WEIGHT: Final = 100.0


class ExpectedTTFT:
    """By the load, the rates and the match of each endpoint."""

    class Parameters(plugins.IndexReaderParameters, frozen=True, kw_only=True):
        """Seconds and rates for what is not measured."""

        prefill_tokens_per_second: float = 8_000.0
        running_seconds: float = 0.01
        compute_weight: float = 3.0

        def __post_init__(self) -> None:
            """A rate of none would take for ever."""
            if not _believable(self.prefill_tokens_per_second):
                raise ValueError("prefillTokensPerSecond has to be 1 or more")
            if not 0 <= self.running_seconds <= _LONGEST_S:
                raise ValueError("runningSeconds has to be 0 or more")
            if not 1 <= self.compute_weight <= _MOST_WEIGHT:
                raise ValueError("computeWeight has to be 1 to 100")

    def __init__(self, parameters: Parameters, context: plugins.PluginContext) -> None:
        self._index = context.index
        self._prefill = parameters.prefill_tokens_per_second
        self._usual = self._prefill
        """Of the last candidates: for those that report no rate, and for what counts beside."""
        self._running_s = parameters.running_seconds
        self._extra_weight = parameters.compute_weight - 1.0

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """O(n) in candidates and tiers."""
        self._usual = self._typical(candidates)
        costs = [sum(self._terms(request, one)) for one in candidates]
        least = min(costs, default=0.0)
        return [least / cost for cost in costs]

    def reason(self, request: InferenceRequest, candidate: Candidate) -> str:
        """`0.31 s (counts 0.71): 0.05 waiting, 0.20 computing, 0.05 loading, 0.01 running`."""
        *terms, extra = self._terms(request, candidate)
        words = ("waiting", "computing", "loading", "running")
        told = ", ".join(f"{term:.3f} {word}" for term, word in zip(terms, words, strict=True))
        return f"{sum(terms):.3f} s (counts {sum(terms) + extra:.3f}): {told}"

    def _typical(self, candidates: Sequence[Candidate]) -> float:
        rates = [
            rate
            for candidate in candidates
            if _believable(rate := candidate.endpoint.load.prefill_tokens_per_s)
        ]
        return sum(rates) / len(rates) if rates else self._prefill

    def _terms(
        self, request: InferenceRequest, candidate: Candidate
    ) -> tuple[float, float, float, float, float]:
        """Seconds of waiting, computing, loading and sharing, and what computing counts beside."""
        endpoint = candidate.endpoint
        load = endpoint.load
        measured = load.prefill_tokens_per_s
        prefill = measured if _believable(measured) else self._usual
        match = match_of(candidate, self._index)
        total = match.total_tokens or request.prompt.tokens
        missing = max(1, total - match.best_tokens)
        requests = max(load.waiting + load.running, endpoint.in_flight)
        return (
            _ahead_tokens(endpoint, total) / prefill,
            missing / prefill,
            _load_s(match, endpoint, prefill) if match.tokens else 0.0,
            requests * self._running_s,
            self._extra_weight * missing / self._usual,
        )


def _believable(tokens_per_s: float) -> bool:
    """Whether a rate was measured: metrics may lie, and NaN is neither."""
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


PLUGIN = ExpectedTTFT
