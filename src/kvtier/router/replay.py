"""Replay of logged decisions under another profile: `kvtier route replay FILE`.

A replay lets a profile be judged on past traffic before it handles live traffic. The state of
endpoints and indexes comes from the log; plugins that learn from requests (sessions, turns, cold
prompts) learn from the replayed decisions. Requests that named a strategy are skipped, because the
default profile does not decide them. If the original endpoint ties with the best one, the replay
stays with it: the picker breaks ties at random, and that is not a difference between profiles.
Invariant: the same file, profile and seed give the same result. A replay cannot show how other
choices would have changed caches and queues; the simulator does.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.base import IndexSource, Match
from kvtier.index.fleet.prompt import Prompt, UnreadPrompt
from kvtier.router.choose.base import InferenceRequest
from kvtier.router.choose.decision import RoutingDecision
from kvtier.router.choose.plugins import nearest
from kvtier.router.choose.profile import Profile
from kvtier.router.choose.record import STRATEGY, DecisionRecord, record
from kvtier.router.choose.tier_names import longest
from kvtier.router.config.profiles import build_profiles
from kvtier.router.config.reading import Configuration

DIFFERENCES: Final = 20
"""The default number of differences that `text` lists."""


class LoggedIndex:
    """A `FleetIndex` that returns the matches logged for the current record.

    An index that the log does not contain returns the longest match per tier of all indexes.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._matches: dict[str, Match] = {}

    @property
    def source(self) -> IndexSource:
        """Always ESTIMATED; the source of the logged matches is not known."""
        return IndexSource.ESTIMATED

    def take(self, made: DecisionRecord) -> None:
        """Make `made` the current record."""
        self._matches = {
            endpoint.name: endpoint.held[self._name].match()
            if self._name in endpoint.held
            else longest(held.match() for held in endpoint.held.values())
            for endpoint in made.endpoints
        }

    def match(self, prompt: Prompt, replicas: Sequence[str]) -> list[Match]:
        """Return the logged matches."""
        unknown = Match({}, prompt.tokens)
        return [self._matches.get(name, unknown) for name in replicas]

    def routed(self, prompt: Prompt, replica: str) -> None:
        """Do nothing: later records contain the effect."""

    def resize(self, replica: str, tier: str, capacity_tokens: int) -> None:
        """Do nothing: the log already contains the effect."""

    def remove(self, replica: str) -> None:
        """Do nothing: the log already contains the effect."""


class ReplayDifference(msgspec.Struct, frozen=True):
    """A request that the replayed profile sends to another endpoint."""

    request_id: str
    was: str
    now: str
    held_was: int
    """Prompt tokens that the original endpoint held, in any tier."""
    held_now: int
    """Prompt tokens that the new endpoint held, in any tier."""
    why: DecisionRecord
    """The new decision."""


class ReplayReport(msgspec.Struct, frozen=True):
    """The result of a replay: how far the original and the replayed decisions agree."""

    requests: int
    same: int
    prompt_tokens: int
    held_was: int
    """Prompt tokens that the originally chosen endpoints held."""
    held_now: int
    """Prompt tokens that the newly chosen endpoints held."""
    differences: tuple[ReplayDifference, ...]
    apart: int = 0
    """Further requests that were skipped because they named a strategy."""


def replay(
    records: Iterable[DecisionRecord],
    configuration: Configuration,
    profile: str = "",
    seed: int = 0,
) -> ReplayReport:
    """Decide all records again under `profile`, by default the configuration's first.

    Raises InvalidSettings if there is no such profile.
    """
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
    """Return the new decisions on one request. Raises InvalidSettings if the log has none.

    There are several if a replica failed and the request was decided again.
    """
    again = _Again(configuration, profile, seed)
    found = []
    for logged in records:
        if logged.request_id == request_id:
            found.append(record(again.decide(logged)))
        elif not logged.headers.get(STRATEGY):
            again.decide(logged)
    if not found:
        raise InvalidSettings(f"the file contains no decision on a request {request_id!r}")
    return found


class _Again:
    """Decides logged requests under one profile, one after the other."""

    def __init__(self, configuration: Configuration, profile: str, seed: int) -> None:
        # A profile without indexes of its own reads all logged matches.
        self._indexes = {name: LoggedIndex(name) for name in configuration.indexes or ("",)}
        self._chooser = _chosen(
            build_profiles(configuration, self._indexes, seed, keeps_matches=True), profile
        )
        picker = configuration.profiles[self._chooser.name].picker
        self._keys = getattr(configuration.plugins[picker].plugin, "keys", None)

    def decide(self, logged: DecisionRecord) -> RoutingDecision:
        """Decide a logged request again, and let the plugins learn from the new decision."""
        for index in self._indexes.values():
            index.take(logged)
        request = _request(logged)
        endpoints = [endpoint.endpoint() for endpoint in logged.endpoints]
        decision = self._chooser.decide(request, endpoints, logged.at_s)
        self._stay(decision, _first(logged))
        if decision.chosen:
            self._chooser.routed(request, decision, decision.chosen[0])
        return decision

    def _stay(self, decision: RoutingDecision, name: str) -> None:
        """Move the endpoint `name` to the front of `chosen` if it ties with the best one."""
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
        prompt=UnreadPrompt(logged.prompt_tokens, logged.unit),
        max_tokens=logged.max_tokens,
        headers=logged.headers,
        priority=logged.priority,
    )


def _held(logged: DecisionRecord, name: str) -> int:
    for endpoint in logged.endpoints:
        if endpoint.name == name:
            return longest(held.match() for held in endpoint.held.values()).best_tokens
    return 0


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0%"


def text(done: ReplayReport, most: int = DIFFERENCES) -> str:
    """Return a summary and the first `most` differences."""
    if not done.requests and not done.apart:
        return "the file contains no decisions\n"
    lines = [
        f"{done.requests} requests, {done.same} keep their endpoint "
        f"({_share(done.same, done.requests)})",
        f"prompt tokens held by the original endpoints: "
        f"{_share(done.held_was, done.prompt_tokens)}, "
        f"by the new ones: {_share(done.held_now, done.prompt_tokens)}",
    ]
    if done.apart:
        lines.append(f"skipped: {done.apart} requests that named a {STRATEGY}")
    lines += [
        f"  {one.request_id}: {one.was or 'none'} (holds {one.held_was}) -> "
        f"{one.now or 'none'} (holds {one.held_now})"
        for one in done.differences[:most]
    ]
    left_out = len(done.differences) - most
    if left_out > 0:
        lines.append(f"  and {left_out} more")
    return "\n".join(lines) + "\n"
