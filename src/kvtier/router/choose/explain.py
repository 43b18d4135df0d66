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
    rows += [_row(record, endpoint) for endpoint in _in_order(record)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    notes = [
        f"  {endpoint.name}: {scorer}: {text}"
        for endpoint in _in_order(record)
        for scorer, text in endpoint.reasons.items()
        if not endpoint.removed_by
    ]
    head = (
        f"request {record.request_id}, model {record.model}, {record.prompt_tokens} tokens"
        f"{_guessed(record)}, profile {record.profile}"
    )
    return "\n".join([head, reason(record), *lines, *notes]) + "\n"


def reason(record: DecisionRecord) -> str:
    """Return one line that says why the first endpoint in `chosen` was picked."""
    kept = [endpoint for endpoint in record.endpoints if not endpoint.removed_by]
    if not record.endpoints:
        return "none chosen: there are no endpoints"
    if not kept:
        filters = sorted({endpoint.removed_by for endpoint in record.endpoints})
        return f"none chosen: {', '.join(filters)} removed all of {len(record.endpoints)}"
    if not record.chosen:
        return "none chosen"
    best = next(endpoint for endpoint in kept if endpoint.name == record.chosen[0])
    others = [endpoint for endpoint in kept if endpoint is not best]
    if not others:
        return f"{best.name}: the only candidate left of {len(record.endpoints)}"
    second = max(others, key=lambda endpoint: endpoint.total)
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
    fields: dict[str, Any] = {
        "profile": record.profile,
        "tokens": record.prompt_tokens,
        "reason": reason(record),
        "scorers": [name for name, _ in record.scorers],
        "endpoints": [],
    }
    if record.unit is Unit.CHARACTER:
        fields["estimated_from"] = "characters"
    room = limit_bytes - len(_compact({**fields, "left_out": len(record.endpoints)}))
    if room < 0:
        return _compact({"profile": record.profile[:40], "left_out": len(record.endpoints)})
    for endpoint in _in_order(record):
        entry = _entry(endpoint)
        room -= len(_compact(entry)) + 1
        if room < 0:
            break
        fields["endpoints"].append(entry)
    left_out = len(record.endpoints) - len(fields["endpoints"])
    return _compact({**fields, "left_out": left_out} if left_out else fields)


def _entry(endpoint: EndpointRecord) -> dict[str, Any]:
    if endpoint.removed_by:
        return {"name": endpoint.name, "removed_by": endpoint.removed_by}
    entry: dict[str, Any] = {
        "name": endpoint.name,
        "total": round(endpoint.total, 3),
        "scores": [round(score, 3) for score in endpoint.scores],
        "holds": {index: held.tokens for index, held in endpoint.held.items() if held.tokens},
    }
    if endpoint.reasons:
        entry["reasons"] = endpoint.reasons
    return entry


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)


def _in_order(record: DecisionRecord) -> Sequence[EndpointRecord]:
    """Return the chosen endpoints in order, then the others by total, then the removed ones."""
    place = {name: place for place, name in enumerate(record.chosen)}
    return sorted(
        record.endpoints,
        key=lambda endpoint: (
            bool(endpoint.removed_by),
            place.get(endpoint.name, len(place)),
            -endpoint.total,
            endpoint.name,
        ),
    )


def _row(record: DecisionRecord, endpoint: EndpointRecord) -> list[str]:
    mark = str(record.chosen.index(endpoint.name) + 1) if endpoint.name in record.chosen else ""
    load = endpoint.load
    state = f"waiting {load.waiting}, running {load.running}, in flight {endpoint.in_flight}"
    if endpoint.removed_by:
        blanks = [""] * len(record.scorers)
        return ["", endpoint.name, "", *blanks, f"removed by {endpoint.removed_by}", state]
    scores = [f"{score:.3f}" for score in endpoint.scores]
    return [mark, endpoint.name, f"{endpoint.total:.3f}", *scores, _holds(endpoint), state]


def _holds(endpoint: EndpointRecord) -> str:
    held = [
        f"{tokens} {tier}"
        for one in endpoint.held.values()
        for tier, tokens in one.tokens.items()
        if tokens
    ]
    return ", ".join(dict.fromkeys(held)) or "nothing"


def _guessed(record: DecisionRecord) -> str:
    return " (estimated from characters)" if record.unit is Unit.CHARACTER else ""
