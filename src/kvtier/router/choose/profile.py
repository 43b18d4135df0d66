"""A profile: the filters, scorers and picker that choose a replica for a request.

`kvtier route` and `kvtier epp` both choose through a profile. A decision runs on the event loop's
thread; it never blocks and reads no clock. It costs a few passes over the candidates;
docs/reference/router-profile.md has the measurements.
Invariants: scores are clamped to [0, 1] before they are weighted, and weights are not normalized.
A plugin that raises is left out of the operation in question (scoring, filtering, explaining,
learning, adding headers) and never fails the request.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from kvtier.index.fleet.base import FleetIndex
from kvtier.router.choose.base import (
    Candidate,
    Endpoint,
    Filter,
    InferenceRequest,
    Picker,
    RoutingObserver,
    Scorer,
)
from kvtier.router.choose.decision import RoutingDecision, WeightedScorer

_LOG: Final = logging.getLogger(__name__)


class DecisionClock:
    """A clock that shows plugins the time of the current decision; `Profile` sets it."""

    __slots__ = ("at_s",)

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_s(self) -> float:
        """Return the time of the current decision, on the caller's clock."""
        return self.at_s


class Profile:
    """A profile that chooses replicas with its filters, scorers and picker."""

    def __init__(
        self,
        name: str,
        *,
        filters: Sequence[tuple[str, Filter]],
        scorers: Sequence[WeightedScorer],
        picker: tuple[str, Picker],
        indexes: Mapping[str, FleetIndex],
        clock: DecisionClock,
    ) -> None:
        """Create a profile; `indexes` is empty if none of the plugins reads any."""
        self.name = name
        # One index may have several names; it is queried and updated once per request.
        by_identity = {id(index): index for index in indexes.values()}
        self._indexes = list(by_identity.values())
        order = list(by_identity)
        self._names = [(name, order.index(id(index))) for name, index in indexes.items()]
        self._clock = clock
        self._filters = list(filters)
        self._scorers = [
            one._replace(scorer=_explained(one.name, one.scorer, self._fails)) for one in scorers
        ]
        self._picker = picker[1]
        named: list[tuple[str, Any]] = [
            *filters,
            *((one.name, one.scorer) for one in scorers),
            picker,
        ]
        self._plugins = list(
            {id(plugin): (plugin_name, plugin) for plugin_name, plugin in named}.values()
        )
        self._observers: list[tuple[str, RoutingObserver]] = [
            (name, one) for name, one in self._plugins if hasattr(one, "routed")
        ]
        self._failed: set[tuple[str, str]] = set()

    @property
    def headers(self) -> frozenset[str]:
        """Names of the request headers that the plugins read, in lower case.

        The decision log keeps these headers, so that a replay can repeat the decision.
        """
        read = (getattr(one, "headers", ()) for _, one in self._plugins)
        return frozenset(header for headers in read for header in headers)

    @property
    def reads_prompts(self) -> bool:
        """True if any plugin reads from an index, so that a request's prompt has to be hashed."""
        return bool(self._indexes)

    def decide(
        self, request: InferenceRequest, endpoints: Sequence[Endpoint], now_s: float
    ) -> RoutingDecision:
        """Choose a replica for `request`; `chosen` is empty if no candidate is left. Never raises.

        `now_s` is on the same clock as `ReplicaLoad.updated_s`. Indexes and plugins learn nothing
        of the request before `routed`; only a picker may advance its turn.
        """
        self._clock.at_s = now_s
        decision = RoutingDecision(self.name, request, self._candidates(request, endpoints), now_s)
        for name, one in self._filters:
            self._filter(decision, name, one)
        kept = decision.kept
        totals = [0.0] * len(kept)
        for name, weight, scorer in self._scorers:
            scores = self._scores(name, scorer, request, kept)
            decision.scores.append(scores)
            totals = [total + weight * score for total, score in zip(totals, scores, strict=True)]
        decision.scorers = self._scorers
        decision.totals = totals
        if kept:
            decision.chosen = self._pick(request, kept, totals)
        return decision

    def routed(
        self, request: InferenceRequest, decision: RoutingDecision, chosen: Candidate
    ) -> None:
        """Record that `request` was sent to `chosen`, in all indexes and plugins that learn."""
        self._clock.at_s = decision.now_s
        for index in self._indexes:
            index.routed(request.prompt, chosen.endpoint.name)
        for name, observer in self._observers:
            try:
                observer.routed(request, decision.candidates, chosen)
            except Exception:
                self._fails(name, "it does not learn of this request")

    def response_headers(self, request: InferenceRequest, endpoint: Endpoint) -> dict[str, str]:
        """Return the headers that let plugins recognize the client's next request."""
        headers: dict[str, str] = {}
        for name, one in self._plugins:
            if not hasattr(one, "response_headers"):
                continue
            try:
                headers.update(one.response_headers(request, endpoint))
            except Exception:
                self._fails(name, "its response headers are left out")
        return headers

    def _candidates(
        self, request: InferenceRequest, endpoints: Sequence[Endpoint]
    ) -> list[Candidate]:
        replicas = [endpoint.name for endpoint in endpoints]
        found = [index.match(request.prompt, replicas) for index in self._indexes]
        if len(self._names) == 1:
            [(name, _)] = self._names
            return [
                Candidate(endpoint, {name: match})
                for endpoint, match in zip(endpoints, found[0], strict=True)
            ]
        if not found:
            return [Candidate(endpoint, {}) for endpoint in endpoints]
        named = [(name, found[place]) for name, place in self._names]
        return [
            Candidate(endpoint, {name: matches[place] for name, matches in named})
            for place, endpoint in enumerate(endpoints)
        ]

    def _filter(self, decision: RoutingDecision, name: str, one: Filter) -> None:
        try:
            kept = one.keep(decision.request, decision.kept)
        except Exception:
            self._fails(name)
            return
        if len(kept) != len(decision.kept):
            staying = {id(candidate) for candidate in kept}
            for candidate in decision.kept:
                if id(candidate) not in staying:
                    decision.removed[candidate.endpoint.name] = name
        decision.kept = kept

    def _scores(
        self, name: str, scorer: Scorer, request: InferenceRequest, kept: list[Candidate]
    ) -> list[float]:
        try:
            scores = scorer.score(request, kept)
            # The final 0.0 covers NaN as well as negative scores.
            clamped = [one if 0.0 <= one <= 1.0 else 1.0 if one > 1.0 else 0.0 for one in scores]
        except Exception:
            self._fails(name)
            return [0.0] * len(kept)
        if len(clamped) != len(kept):
            self._fails(name)
            return [0.0] * len(kept)
        return clamped

    def _pick(
        self, request: InferenceRequest, kept: list[Candidate], totals: list[float]
    ) -> list[Candidate]:
        try:
            chosen = self._picker.pick(request, kept, totals)
        except Exception:
            self._fails("the picker")
            chosen = []
        if chosen:
            return chosen
        best = max(range(len(kept)), key=totals.__getitem__)
        return [kept[best]]

    def _fails(self, name: str, effect: str = "it is left out of decisions while it fails") -> None:
        """Log the current exception once per plugin and effect, not with every request."""
        if (name, effect) not in self._failed:
            self._failed.add((name, effect))
            _LOG.exception("%s failed; %s", name, effect)


class _Explained:
    """A scorer with reasons, of which a failing `reason` is logged instead of raised."""

    def __init__(self, name: str, scorer: Any, fails: Callable[[str, str], None]) -> None:
        self._name = name
        self._scorer = scorer
        self._fails = fails

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """Return the scores of the wrapped scorer."""
        scores: list[float] = self._scorer.score(request, candidates)
        return scores

    def reason(self, request: InferenceRequest, candidate: Candidate) -> str:
        """Return the wrapped scorer's explanation of a candidate's score."""
        try:
            return str(self._scorer.reason(request, candidate))
        except Exception:
            self._fails(self._name, "its reasons are left out")
            return "no reason: the scorer failed"


def _explained(name: str, scorer: Any, fails: Callable[[str, str], None]) -> Scorer:
    return _Explained(name, scorer, fails) if hasattr(scorer, "reason") else scorer
