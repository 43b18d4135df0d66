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

from kvtier.clock import seeded
from kvtier.errors import InvalidSettings
from kvtier.index.fleet.base import FleetIndex
from kvtier.router.choose import parts
from kvtier.router.choose.base import Candidate, Endpoint, Filter, Observer, Picker, Request, Scorer
from kvtier.router.choose.decision import Decision, Weighted
from kvtier.router.config.indexes import IndexSpec
from kvtier.router.config.reading import Configuration, PluginSpec, ProfileSpec

_LOG: Final = logging.getLogger(__name__)


class Moment:
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
        spec: ProfileSpec,
        made: Mapping[str, Any],
        indexes: Mapping[str, FleetIndex],
        moment: Moment,
    ) -> None:
        """`indexes`: empty where no part of it looks at any."""
        self.name = spec.name
        # One index may go by several names: it is asked once, and hears of a request once.
        by_identity = {id(index): index for index in indexes.values()}
        self._indexes = list(by_identity.values())
        order = list(by_identity)
        self._names = [(name, order.index(id(index))) for name, index in indexes.items()]
        self._moment = moment
        self._filters: list[tuple[str, Filter]] = [(name, made[name]) for name in spec.filters]
        self._scorers = [
            Weighted(name, weight, _explained(name, made[name], self._fails))
            for name, weight in spec.scorers
        ]
        self._picker: Picker = made[spec.picker]
        names = [*spec.filters, *(name for name, _ in spec.scorers), spec.picker]
        self._parts = list({id(made[name]): (name, made[name]) for name in names}.values())
        self._observers: list[tuple[str, Observer]] = [
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

    def decide(self, request: Request, endpoints: Sequence[Endpoint], now_s: float) -> Decision:
        """Where `request` goes. Never raises; `chosen` is empty where nobody is left.

        `now_s` is of the clock that `Load.updated_s` is of. Nothing is remembered of the request
        until `routed`; pickers take their turn.
        """
        self._moment.at_s = now_s
        decision = Decision(self.name, request, self._candidates(request, endpoints), now_s)
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

    def routed(self, request: Request, decision: Decision, chosen: Candidate) -> None:
        """`request` has been sent to `chosen`: every index and every part that learns hears it."""
        self._moment.at_s = decision.now_s
        for index in self._indexes:
            index.routed(request.prompt, chosen.endpoint.name)
        for name, observer in self._observers:
            try:
                observer.routed(request, decision.candidates, chosen)
            except Exception:
                self._fails(name, "it learns nothing of this request")

    def response_headers(self, request: Request, endpoint: Endpoint) -> dict[str, str]:
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

    def _candidates(self, request: Request, endpoints: Sequence[Endpoint]) -> list[Candidate]:
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

    def _filter(self, decision: Decision, name: str, one: Filter) -> None:
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
        self, name: str, scorer: Scorer, request: Request, kept: list[Candidate]
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
        self, request: Request, kept: list[Candidate], totals: list[float]
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

    def score(self, request: Request, candidates: Sequence[Candidate]) -> list[float]:
        """See Scorer."""
        scores: list[float] = self._scorer.score(request, candidates)
        return scores

    def reason(self, request: Request, candidate: Candidate) -> str:
        """What it says of a candidate, for people."""
        try:
            return str(self._scorer.reason(request, candidate))
        except Exception:
            self._fails(self._name, "it gives no reasons")
            return "no reason is given: it failed"


def _explained(name: str, scorer: Any, fails: Callable[[str, str], None]) -> Scorer:
    return _Explained(name, scorer, fails) if hasattr(scorer, "reason") else scorer


def build(
    configuration: Configuration,
    indexes: Mapping[str, FleetIndex],
    seed: int = 0,
    *,
    keeps_matches: bool = False,
) -> dict[str, Profile]:
    """Every profile of a configuration, by name; the first is the default.

    `indexes` holds those that `configuration.indexes` asks for, and may hold more: parts that
    name none look at all. A profile of which no part looks at any asks and tells none of them,
    unless `keeps_matches` wants to know of every decision what was held. Raises InvalidSettings
    where an index is missing.
    """
    missing = [
        name
        for name in {one.index for one in configuration.plugins.values()}
        if name is not None and name not in indexes
    ]
    if missing:
        raise InvalidSettings(f"{configuration.path}: there is no index {', '.join(missing)}")
    moment = Moment()
    random = seeded(seed)
    made = {
        name: _make(spec, configuration.indexes, random, moment)
        for name, spec in configuration.plugins.items()
    }
    return {
        name: Profile(
            spec,
            made,
            indexes if keeps_matches or _reads(spec, configuration) else {},
            moment,
        )
        for name, spec in configuration.profiles.items()
    }


def _reads(spec: ProfileSpec, configuration: Configuration) -> bool:
    names = (*spec.filters, *(name for name, _ in spec.scorers), spec.picker)
    return any(parts.reads_index(configuration.plugins[name].parameters) for name in names)


def _make(
    spec: PluginSpec, indexes: Mapping[str, IndexSpec], random: parts.Random, moment: Moment
) -> Any:
    index = indexes.get(spec.index) if spec.index is not None else None
    sizes = index or IndexSpec(name="")
    context = parts.Context(
        name=spec.name,
        random=random,
        now_s=moment.now_s,
        index=spec.index,
        tier=spec.tier,
        block_tokens=sizes.block_tokens,
        max_match_tokens=sizes.max_match_tokens,
    )
    try:
        return spec.plugin(spec.parameters, context)
    except ValueError as error:
        raise InvalidSettings(f"{spec.where}: {spec.name}: {error}") from error
