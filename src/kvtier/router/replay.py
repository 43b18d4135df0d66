"""Deciding logged requests again under another profile: `kvtier route replay FILE`.

Why it exists: a profile can be judged on yesterday's traffic before it takes today's. What the
endpoints and indexes were at the time comes from the log; what parts learn from requests
(sessions, turns, cold prompts) they learn from the replayed choices. Requests that named a
strategy are left out: what they named decided them, and would again. Where the endpoint that
a request went to is as good as the best, it goes there again, since between equals chance
decides. Invariant: the same file, profile and seed give the same answer. A replay cannot show
what other choices would have done to caches and queues; the simulator does.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.base import Match, Source
from kvtier.index.fleet.prompt import Prompt, Unit
from kvtier.router.choose.base import InferenceRequest
from kvtier.router.choose.decision import RoutingDecision
from kvtier.router.choose.plugins import nearest
from kvtier.router.choose.profile import Profile
from kvtier.router.choose.record import STRATEGY, DecisionRecord, record
from kvtier.router.choose.tier_names import longest
from kvtier.router.config.profiles import build_profiles
from kvtier.router.config.reading import Configuration

DIFFERENCES: Final = 20
"""Rows that `text` prints."""


class LoggedPrompt:
    """A prompt of which only the length was logged."""

    def __init__(self, tokens: int, unit: Unit) -> None:
        self.tokens = tokens
        self.unit = unit

    def chain(self, block_tokens: int) -> list[int]:
        """Nothing: what indexes knew of it was logged."""
        return []


class LoggedIndex:
    """A `FleetIndex` that answers what was logged for the record at hand.

    An index that the log does not have answers with the longest match of each tier of all.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._matches: dict[str, Match] = {}

    @property
    def source(self) -> Source:
        """Whatever it was."""
        return Source.ESTIMATED

    def take(self, made: DecisionRecord) -> None:
        """Answer for this record from now on."""
        self._matches = {
            choice.name: choice.held[self._name].match()
            if self._name in choice.held
            else longest(held.match() for held in choice.held.values())
            for choice in made.endpoints
        }

    def match(self, prompt: Prompt, replicas: Sequence[str]) -> list[Match]:
        """As logged."""
        unknown = Match({}, prompt.tokens)
        return [self._matches.get(name, unknown) for name in replicas]

    def routed(self, prompt: Prompt, replica: str) -> None:
        """The log tells what became of it."""

    def resize(self, replica: str, tier: str, capacity_tokens: int) -> None:
        """The log tells."""

    def remove(self, replica: str) -> None:
        """The log tells."""


class ReplayDifference(msgspec.Struct, frozen=True):
    """A request that would have gone elsewhere."""

    request_id: str
    was: str
    now: str
    held_was: int
    """Tokens of its prompt that the one held, in any tier, and then the other."""
    held_now: int
    why: DecisionRecord
    """The new decision."""


class ReplayReport(msgspec.Struct, frozen=True):
    """How two profiles agree."""

    requests: int
    same: int
    prompt_tokens: int
    held_was: int
    """Prompt tokens that the endpoints chosen then held, and those chosen now."""
    held_now: int
    differences: tuple[ReplayDifference, ...]
    apart: int = 0
    """Requests beside these that named a strategy."""


def replay(
    records: Iterable[DecisionRecord],
    configuration: Configuration,
    profile: str = "",
    seed: int = 0,
) -> ReplayReport:
    """Decide each again under `profile`, or the configuration's first. Raises InvalidSettings."""
    again = _Again(configuration, profile, seed)
    requests = same = apart = prompt_tokens = held_was = held_now = 0
    differences: list[ReplayDifference] = []
    for logged in records:
        if logged.headers.get(STRATEGY):
            apart += 1
            continue
        now = record(again.decide(logged))
        was_name, now_name = _first(logged), _first(now)
        was_held, now_held = _held(logged, was_name), _held(logged, now_name)
        requests += 1
        prompt_tokens += logged.prompt_tokens
        held_was += was_held
        held_now += now_held
        if was_name == now_name:
            same += 1
            continue
        differences.append(
            ReplayDifference(logged.request_id, was_name, now_name, was_held, now_held, now)
        )
    return ReplayReport(
        requests, same, prompt_tokens, held_was, held_now, tuple(differences), apart
    )


def explained(
    records: Iterable[DecisionRecord],
    configuration: Configuration,
    request_id: str,
    profile: str = "",
    seed: int = 0,
) -> list[DecisionRecord]:
    """The new decisions on the request of that name. Raises InvalidSettings where it has none.

    They are several where a replica failed, and the request was decided again.
    """
    again = _Again(configuration, profile, seed)
    found = []
    for logged in records:
        if logged.request_id == request_id:
            found.append(record(again.decide(logged)))
        elif not logged.headers.get(STRATEGY):
            again.decide(logged)
    if not found:
        raise InvalidSettings(f"no decision in the file is on a request {request_id!r}")
    return found


class _Again:
    """Decides logged requests by one profile, one after the other."""

    def __init__(self, configuration: Configuration, profile: str, seed: int) -> None:
        # Profiles that look at no index of their own look at whatever was logged.
        self._indexes = {name: LoggedIndex(name) for name in configuration.indexes or ("",)}
        self._chooser = _chosen(
            build_profiles(configuration, self._indexes, seed, keeps_matches=True), profile
        )
        picker = configuration.profiles[self._chooser.name].picker
        self._keys = getattr(configuration.plugins[picker].plugin, "keys", None)

    def decide(self, logged: DecisionRecord) -> RoutingDecision:
        """Where it goes now; its parts learn that."""
        for index in self._indexes.values():
            index.take(logged)
        request = _request(logged)
        endpoints = [choice.endpoint() for choice in logged.endpoints]
        decision = self._chooser.decide(request, endpoints, logged.at_s)
        self._stay(decision, _first(logged))
        if decision.chosen:
            self._chooser.routed(request, decision, decision.chosen[0])
        return decision

    def _stay(self, decision: RoutingDecision, name: str) -> None:
        """Prefer the endpoint `name` to those that are no better: chance is no difference."""
        if self._keys is None or not decision.kept:
            return
        keys = self._keys(decision.kept, decision.totals)
        least = min(keys)
        for candidate, key in zip(decision.kept, keys, strict=True):
            if candidate.endpoint.name == name and key == least:
                others = [one for one in decision.chosen if one is not candidate]
                decision.chosen = [candidate, *others]


def _first(made: DecisionRecord) -> str:
    return made.chosen[0] if made.chosen else ""


def _chosen(built: dict[str, Profile], name: str) -> Profile:
    if not name:
        return next(iter(built.values()))
    if name not in built:
        raise InvalidSettings(f"there is no profile or strategy {name!r}{nearest(name, built)}")
    return built[name]


def _request(logged: DecisionRecord) -> InferenceRequest:
    return InferenceRequest(
        request_id=logged.request_id,
        model=logged.model,
        prompt=LoggedPrompt(logged.prompt_tokens, logged.unit),
        max_tokens=logged.max_tokens,
        headers=logged.headers,
        priority=logged.priority,
    )


def _held(logged: DecisionRecord, name: str) -> int:
    for choice in logged.endpoints:
        if choice.name == name:
            return longest(held.match() for held in choice.held.values()).best_tokens
    return 0


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0%"


def text(done: ReplayReport, most: int = DIFFERENCES) -> str:
    """A summary, and the first `most` differences."""
    if not done.requests and not done.apart:
        return "no decisions in the file\n"
    lines = [
        f"{done.requests} requests, {done.same} go where they went "
        f"({_share(done.same, done.requests)})",
        f"prompt tokens held where they went: {_share(done.held_was, done.prompt_tokens)}, "
        f"where they would go: {_share(done.held_now, done.prompt_tokens)}",
    ]
    if done.apart:
        lines.append(f"left out: {done.apart} requests that named a {STRATEGY}")
    lines += [
        f"  {one.request_id}: {one.was or 'nobody'} (holds {one.held_was}) -> "
        f"{one.now or 'nobody'} (holds {one.held_now})"
        for one in done.differences[:most]
    ]
    left_out = len(done.differences) - most
    if left_out > 0:
        lines.append(f"  and {left_out} more")
    return "\n".join(lines) + "\n"
