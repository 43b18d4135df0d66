"""A decision as data: what `--explain` prints, a log keeps and `replay` decides again.

Why it exists: one form for all three, so that what is logged is what was explained. One line of
JSON a decision. Invariants: a record holds everything that choosing looks at, and of a request's
headers only those that a part of the profile reads, and the strategy it asks for: no key of an
API, no prompt.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.base import Match
from kvtier.index.fleet.prompt import Unit
from kvtier.router.choose.base import Endpoint, ReplicaLoad
from kvtier.router.choose.decision import RoutingDecision

STRATEGY: Final = "routing-strategy"
"""The header of a request that is not decided by the usual profile."""

_LOG: Final = logging.getLogger(__name__)
_BEGINNING: Final = b'{"request_id":"'


class RecordedMatch(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one index knew of one endpoint."""

    tokens: Mapping[str, int] = {}
    total: int = 0

    def match(self) -> Match:
        """As the index told it."""
        return Match(self.tokens, self.total)


class EndpointRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An endpoint at the time: every field that `Endpoint` has, and what was made of it."""

    name: str
    address: str
    models: frozenset[str]
    labels: Mapping[str, str] = {}
    load: ReplicaLoad = ReplicaLoad()
    in_flight: int = 0
    in_flight_tokens: int = 0
    pending_tokens: int | None = None
    held: Mapping[str, RecordedMatch] = {}
    """By index."""
    removed_by: str = ""
    """The filter that took it away."""
    scores: tuple[float, ...] = ()
    """In the order of the record's scorers; none where a filter took it away."""
    total: float = 0.0
    reasons: Mapping[str, str] = {}
    """By scorer, of those that have something to say."""

    def endpoint(self) -> Endpoint:
        """As it was."""
        return Endpoint(**{name: getattr(self, name) for name in Endpoint.__struct_fields__})


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One decision."""

    request_id: str
    model: str
    at_s: float
    """Of the router's clock."""
    prompt_tokens: int
    unit: Unit = Unit.TOKEN
    max_tokens: int = 0
    priority: int = 0
    headers: Mapping[str, str] = {}
    profile: str
    scorers: tuple[tuple[str, float], ...]
    """Names and weights."""
    endpoints: tuple[EndpointRecord, ...]
    chosen: tuple[str, ...]
    """Names: the best, then the fallbacks."""


def record(decision: RoutingDecision, headers: frozenset[str] = frozenset()) -> DecisionRecord:
    """The decision as it stands; call it before the endpoints change. O(endpoints * scorers).

    `headers` are those to keep beside the strategy: `Profile.headers`.
    """
    kept_headers = headers | {STRATEGY}
    request = decision.request
    places = {id(candidate): place for place, candidate in enumerate(decision.kept)}
    choices = []
    for candidate in decision.candidates:
        endpoint = candidate.endpoint
        place = places.get(id(candidate))
        choices.append(
            EndpointRecord(
                **{name: getattr(endpoint, name) for name in Endpoint.__struct_fields__},
                held={
                    index: RecordedMatch(
                        {tier: tokens for tier, tokens in match.tokens.items() if tokens},
                        match.total_tokens,
                    )
                    for index, match in candidate.matches.items()
                },
                removed_by=decision.removed.get(endpoint.name, ""),
                scores=()
                if place is None
                else tuple(round(scores[place], 6) for scores in decision.scores),
                total=0.0 if place is None else round(decision.totals[place], 6),
                reasons={
                    one.name: one.scorer.reason(request, candidate)
                    for one in decision.scorers
                    if hasattr(one.scorer, "reason")
                },
            )
        )
    return DecisionRecord(
        request_id=request.request_id,
        model=request.model,
        at_s=decision.now_s,
        prompt_tokens=request.prompt.tokens,
        unit=request.prompt.unit,
        max_tokens=request.max_tokens,
        priority=request.priority,
        headers={name: text for name, text in request.headers.items() if name in kept_headers},
        profile=decision.profile,
        scorers=tuple((one.name, one.weight) for one in decision.scorers),
        endpoints=tuple(choices),
        chosen=tuple(candidate.endpoint.name for candidate in decision.chosen),
    )


def line(made: DecisionRecord) -> bytes:
    """One line of JSON, its end included."""
    return msgspec.json.encode(made) + b"\n"


def read_records(path: str) -> Iterator[DecisionRecord]:
    """The records of a file, one at a time; empty lines are passed over.

    A line that begins as a record and is no JSON is left out, with a warning: it was cut, since
    whoever wrote it was killed, had no room, or is at it.
    Raises InvalidSettings, with the line, for a file that cannot be read or holds anything else.
    """
    decoder = msgspec.json.Decoder(DecisionRecord)
    try:
        with Path(path).expanduser().open("rb") as lines:
            for number, ended in enumerate(lines, start=1):
                text = ended.strip()
                made = _decoded(decoder, text, f"{path} line {number}") if text else None
                if made is not None:
                    yield made
    except OSError as error:
        raise InvalidSettings(f"{path} cannot be read: {error.strerror or error}") from error


def _decoded(
    decoder: msgspec.json.Decoder[DecisionRecord], text: bytes, where: str
) -> DecisionRecord | None:
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        begins_well = text[: len(_BEGINNING)] == _BEGINNING[: len(text)]
        if begins_well and not isinstance(error, msgspec.ValidationError):
            _LOG.warning("%s is cut and left out", where)
            return None
        raise InvalidSettings(f"{where}: no decision: {error}") from error
