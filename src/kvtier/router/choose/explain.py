"""Explanations of a decision: a table, one line for a response header, and a sentence.

Invariant: a header is ASCII and at most as long as requested; endpoints that do not fit are
counted in `left_out`.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from kvtier.index.fleet.prompt import Unit
from kvtier.router.choose.record import DecisionRecord, EndpointRecord

HEADER_BYTES: Final = 4_096
"""A length that proxies and clients accept in addition to the other headers."""


def text(record: DecisionRecord) -> str:
    """Return the request, the reason, and a table with a row per endpoint, best first."""
    names = [f"{name} x{weight:g}" for name, weight in record.scorers]
    rows = [["", "endpoint", "total", *names, "holds", "load"]]
    rows += [_row(record, choice) for choice in _in_order(record)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    notes = [
        f"  {choice.name}: {scorer}: {said}"
        for choice in _in_order(record)
        for scorer, said in choice.reasons.items()
        if not choice.removed_by
    ]
    head = (
        f"request {record.request_id}, model {record.model}, {record.prompt_tokens} tokens"
        f"{_guessed(record)}, profile {record.profile}"
    )
    return "\n".join([head, reason(record), *lines, *notes]) + "\n"


def reason(record: DecisionRecord) -> str:
    """Return one line that says why the first endpoint in `chosen` was picked."""
    kept = [choice for choice in record.endpoints if not choice.removed_by]
    if not record.endpoints:
        return "none chosen: there are no endpoints"
    if not kept:
        filters = sorted({choice.removed_by for choice in record.endpoints})
        return f"none chosen: {', '.join(filters)} removed all of {len(record.endpoints)}"
    if not record.chosen:
        return "none chosen"
    best = next(choice for choice in kept if choice.name == record.chosen[0])
    others = [choice for choice in kept if choice is not best]
    if not others:
        return f"{best.name}: the only candidate left of {len(record.endpoints)}"
    second = max(others, key=lambda choice: choice.total)
    ahead = best.total - second.total
    if ahead == 0:
        return f"{best.name}: tied with {second.name}, picked in turn or at random"
    if ahead < 0:
        return f"{best.name}: picked although {second.name} scores {-ahead:.3f} more"
    leads = [
        (weight * (mine - its), name)
        for (name, weight), mine, its in zip(
            record.scorers, best.scores, second.scores, strict=True
        )
    ]
    return f"{best.name}: {ahead:.3f} ahead of {second.name}, mostly by {max(leads)[1]}"


def header(record: DecisionRecord, limit_bytes: int = HEADER_BYTES) -> str:
    """Return one line of JSON with as many endpoints as fit, best first.

    `left_out` counts the endpoints that do not fit into `limit_bytes`.
    """
    told: dict[str, Any] = {
        "profile": record.profile,
        "tokens": record.prompt_tokens,
        "reason": reason(record),
        "scorers": [name for name, _ in record.scorers],
        "endpoints": [],
    }
    if record.unit is Unit.CHARACTER:
        told["estimated_from"] = "characters"
    room = limit_bytes - len(_compact({**told, "left_out": len(record.endpoints)}))
    if room < 0:
        return _compact({"profile": record.profile[:40], "left_out": len(record.endpoints)})
    for choice in _in_order(record):
        entry = _entry(choice)
        room -= len(_compact(entry)) + 1
        if room < 0:
            break
        told["endpoints"].append(entry)
    left_out = len(record.endpoints) - len(told["endpoints"])
    return _compact({**told, "left_out": left_out} if left_out else told)


def _entry(choice: EndpointRecord) -> dict[str, Any]:
    if choice.removed_by:
        return {"name": choice.name, "removed_by": choice.removed_by}
    entry: dict[str, Any] = {
        "name": choice.name,
        "total": round(choice.total, 3),
        "scores": [round(score, 3) for score in choice.scores],
        "holds": {index: held.tokens for index, held in choice.held.items() if held.tokens},
    }
    if choice.reasons:
        entry["reasons"] = choice.reasons
    return entry


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)


def _in_order(record: DecisionRecord) -> Sequence[EndpointRecord]:
    """Return the chosen endpoints in order, then the others by total, then the removed ones."""
    place = {name: place for place, name in enumerate(record.chosen)}
    return sorted(
        record.endpoints,
        key=lambda choice: (
            bool(choice.removed_by),
            place.get(choice.name, len(place)),
            -choice.total,
            choice.name,
        ),
    )


def _row(record: DecisionRecord, choice: EndpointRecord) -> list[str]:
    mark = str(record.chosen.index(choice.name) + 1) if choice.name in record.chosen else ""
    load = choice.load
    state = f"waiting {load.waiting}, running {load.running}, in flight {choice.in_flight}"
    if choice.removed_by:
        blanks = [""] * len(record.scorers)
        return ["", choice.name, "", *blanks, f"removed by {choice.removed_by}", state]
    scores = [f"{score:.3f}" for score in choice.scores]
    return [mark, choice.name, f"{choice.total:.3f}", *scores, _holds(choice), state]


def _holds(choice: EndpointRecord) -> str:
    held = [
        f"{tokens} {tier}"
        for one in choice.held.values()
        for tier, tokens in one.tokens.items()
        if tokens
    ]
    return ", ".join(dict.fromkeys(held)) or "nothing"


def _guessed(record: DecisionRecord) -> str:
    return " (estimated from characters)" if record.unit is Unit.CHARACTER else ""
