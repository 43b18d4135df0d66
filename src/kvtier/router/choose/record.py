"""Decisions as data, which `--explain` prints, the decision log stores and a replay repeats.

All three use one format, so that the log contains what was explained: one line of JSON per
decision. Invariants: a record contains everything that choosing depends on. Of the request's
headers it contains only those that a plugin of the profile reads and the requested strategy; it
never contains an API key or a prompt.
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
"""The request header that names a strategy or profile to use instead of the default one."""

_LOG: Final = logging.getLogger(__name__)
_BEGINNING: Final = b'{"request_id":"'


class RecordedMatch(msgspec.Struct, frozen=True, omit_defaults=True):
    """The match that one index reported for one endpoint."""

    tokens: Mapping[str, int] = {}
    total: int = 0

    def match(self) -> Match:
        """Return the match that the index reported."""
        return Match(self.tokens, self.total)


class EndpointRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An endpoint at the time of a decision: all fields of `Endpoint`, and its scores."""

    name: str
    address: str
    models: frozenset[str]
    labels: Mapping[str, str] = {}
    load: ReplicaLoad = ReplicaLoad()
    in_flight: int = 0
    in_flight_tokens: int = 0
    pending_tokens: int | None = None
    held: Mapping[str, RecordedMatch] = {}
    """Matches by index name."""
    removed_by: str = ""
    """The filter that removed the endpoint, if one did."""
    scores: tuple[float, ...] = ()
    """Scores in the order of the record's scorers; empty if a filter removed the endpoint."""
    total: float = 0.0
    reasons: Mapping[str, str] = {}
    """Explanations by scorer, from the scorers that provide them."""

    def endpoint(self) -> Endpoint:
        """Return the endpoint in its recorded state."""
        return Endpoint(**{name: getattr(self, name) for name in Endpoint.__struct_fields__})


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A decision on one request, as it is logged."""

    request_id: str
    model: str
    at_s: float
    """The time of the decision, on the router's clock."""
    prompt_tokens: int
    unit: Unit = Unit.TOKEN
    max_tokens: int = 0
    priority: int = 0
    headers: Mapping[str, str] = {}
    profile: str
    scorers: tuple[tuple[str, float], ...]
    """Names and weights of the scorers."""
    endpoints: tuple[EndpointRecord, ...]
    chosen: tuple[str, ...]
    """Names of the chosen endpoints: the best, then the fallbacks."""


def record(decision: RoutingDecision, headers: frozenset[str] = frozenset()) -> DecisionRecord:
    """Return the record of a decision; call this before the endpoints' state changes.

    `headers`: the request headers to keep besides the strategy, which are `Profile.headers`.
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


def encode_line(made: DecisionRecord) -> bytes:
    """Return a record as one line of JSON, with its newline."""
    return msgspec.json.encode(made) + b"\n"


def read_records(path: str) -> Iterator[DecisionRecord]:
    """Yield the records of a file, skipping empty lines.

    A line that starts like a record but is not valid JSON is skipped with a warning: it is
    truncated, because its writer was killed, ran out of space, or is still writing.
    Raises InvalidSettings with the line number if the file cannot be read or contains other data.
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
            _LOG.warning("%s is truncated and skipped", where)
            return None
        raise InvalidSettings(f"{where}: not a logged decision: {error}") from error
