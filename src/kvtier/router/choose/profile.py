"""Filter, score, pick: a profile made from what a configuration asks for.

Why it exists: both servers choose through this one place. `build` makes the parts of a
configuration, each once, however many profiles use it. A decision belongs to the event loop's
thread, blocks on nothing and reads no clock. Costs: a few passes over the candidates; see
docs/reference/router-profile.md for what was measured.
Invariants: scores are clamped to [0, 1] before they are weighted, weights are not normalised,
and a part that fails takes part no more in this decision instead of failing the request, in
whatever it is asked: for scores, for reasons, for headers, to learn.
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
    """The time of the decision that is being made; parts read it, `decide` sets it."""

    __slots__ = ("at_s",)

    def __init__(self) -> None:
        self.at_s = 0.0

    def now_s(self) -> float:
        """Of the caller's clock."""
        return self.at_s


class Profile:
    """One of a configuration's profiles."""

    def __init__(
        self,
        name: str,
        *,
        filters: Sequence[tuple[str, Filter]],
        scorers: Sequence[WeightedScorer],
        picker: tuple[str, Picker],
        indexes: Mapping[str, FleetIndex],
        moment: DecisionClock,
    ) -> None:
        """`indexes`: empty where no part of it looks at any."""
        self.name = name
        # One index may go by several names: it is asked once, and hears of a request once.
        by_identity = {id(index): index for index in indexes.values()}
        self._indexes = list(by_identity.values())
        order = list(by_identity)
        self._names = [(name, order.index(id(index))) for name, index in indexes.items()]
        self._moment = moment
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
        self._parts = list({id(part): (part_name, part) for part_name, part in named}.values())
        self._observers: list[tuple[str, RoutingObserver]] = [
            (name, one) for name, one in self._parts if hasattr(one, "routed")
        ]
        self._failed: set[tuple[str, str]] = set()

    @property
    def headers(self) -> frozenset[str]:
        """Request headers that its parts read, in lower case; a log has to keep them."""
        read = (getattr(one, "headers", ()) for _, one in self._parts)
        return frozenset(header for headers in read for header in headers)

    @property
    def reads_prompts(self) -> bool:
        """Whether any part of it asks an index what endpoints hold of a prompt."""
        return bool(self._indexes)

    def decide(
        self, request: InferenceRequest, endpoints: Sequence[Endpoint], now_s: float
    ) -> RoutingDecision:
        """Where `request` goes. Never raises; `chosen` is empty where nobody is left.

        `now_s` is of the clock that `Load.updated_s` is of. Nothing is remembered of the request
        until `routed`; pickers take their turn.
        """
        self._moment.at_s = now_s
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
        """`request` has been sent to `chosen`: every index and every part that learns hears it."""
        self._moment.at_s = decision.now_s
        for index in self._indexes:
            index.routed(request.prompt, chosen.endpoint.name)
        for name, observer in self._observers:
            try:
                observer.routed(request, decision.candidates, chosen)
            except Exception:
                self._fails(name, "it learns nothing of this request")

    def response_headers(self, request: InferenceRequest, endpoint: Endpoint) -> dict[str, str]:
        """What the client has to be told, so that it is recognised next time."""
        headers: dict[str, str] = {}
        for name, one in self._parts:
            if not hasattr(one, "response_headers"):
                continue
            try:
                headers.update(one.response_headers(request, endpoint))
            except Exception:
                self._fails(name, "it tells the client nothing")
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
            # The last case is NaN, and whatever is below 0.
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

    def _fails(self, name: str, so: str = "it takes no part in choosing while it does") -> None:
        """Said once a part and a task: a bug of it, met again with every request."""
        if (name, so) not in self._failed:
            self._failed.add((name, so))
            _LOG.exception("%s failed; %s", name, so)


class _Explained:
    """A scorer that gives reasons, and gives none where it fails to."""

    def __init__(self, name: str, scorer: Any, fails: Callable[[str, str], None]) -> None:
        self._name = name
        self._scorer = scorer
        self._fails = fails

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """See Scorer."""
        scores: list[float] = self._scorer.score(request, candidates)
        return scores

    def reason(self, request: InferenceRequest, candidate: Candidate) -> str:
        """What it says of a candidate, for people."""
        try:
            return str(self._scorer.reason(request, candidate))
        except Exception:
            self._fails(self._name, "it gives no reasons")
            return "no reason is given: it failed"


def _explained(name: str, scorer: Any, fails: Callable[[str, str], None]) -> Scorer:
    return _Explained(name, scorer, fails) if hasattr(scorer, "reason") else scorer
