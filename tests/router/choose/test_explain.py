import json

import msgspec
import pytest

from kvtier.index.fleet.prompt import Unit
from kvtier.router.choose import explain
from kvtier.router.choose.base import ReplicaLoad
from kvtier.router.choose.record import DecisionRecord, EndpointRecord, RecordedMatch


def choice(name: str, *scores: float, total: float = 0.0, **fields: object) -> EndpointRecord:
    return EndpointRecord(
        name=name,
        address=f"{name}:8000",
        models=frozenset({"m"}),
        scores=scores,
        total=total,
        **fields,  # type: ignore[arg-type]
    )


def made(*choices: EndpointRecord, chosen: tuple[str, ...], **fields: object) -> DecisionRecord:
    return DecisionRecord(
        request_id="r-1",
        model="m",
        at_s=1.0,
        prompt_tokens=1600,
        profile="default",
        scorers=(("queue-scorer", 2.0), ("prefix-cache-scorer", 1.0)),
        endpoints=choices,
        chosen=chosen,
        **fields,  # type: ignore[arg-type]
    )


BEST = choice(
    "a",
    0.5,
    0.9,
    total=1.9,
    load=ReplicaLoad(waiting=2, running=3),
    in_flight=4,
    held={"cpu": RecordedMatch({"ram": 1440}, 1600)},
    reasons={"prefix-cache-scorer": "1440 of 1600 tokens in ram"},
)
SECOND = choice("b", 0.75, 0.0, total=1.5)
GONE = choice("c", removed_by="decode-filter")
RECORD = made(SECOND, GONE, BEST, chosen=("a", "b"))


def test_text_has_scores_weights_matches_and_reason() -> None:
    lines = explain.text(RECORD).splitlines()
    assert lines[0] == "request r-1, model m, 1600 tokens, profile default"
    assert lines[1] == "a: 0.400 ahead of b, mostly by prefix-cache-scorer"
    assert lines[2].split() == (
        ["endpoint", "total", "queue-scorer", "x2", "prefix-cache-scorer", "x1", "holds", "load"]
    )
    assert lines[3].split()[:7] == ["1", "a", "1.900", "0.500", "0.900", "1440", "ram"]
    assert lines[3].endswith("waiting 2, running 3, in flight 4")
    assert lines[4].split()[:6] == ["2", "b", "1.500", "0.750", "0.000", "nothing"]
    assert "removed by decode-filter" in lines[5]
    assert lines[6] == "  a: prefix-cache-scorer: 1440 of 1600 tokens in ram"


def test_estimate_from_characters_is_marked() -> None:
    guessed = msgspec.structs.replace(RECORD, unit=Unit.CHARACTER)
    assert "1600 tokens (estimated from characters)" in explain.text(guessed)
    assert json.loads(explain.header(guessed))["estimated_from"] == "characters"
    assert "estimated_from" not in json.loads(explain.header(RECORD))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (made(chosen=()), "none chosen: there are no endpoints"),
        (made(GONE, chosen=()), "none chosen: decode-filter removed all of 1"),
        (made(BEST, chosen=()), "none chosen"),
        (made(BEST, GONE, chosen=("a",)), "a: the only candidate left of 2"),
        (
            made(BEST, SECOND, chosen=("b", "a")),
            "b: picked although a scores 0.400 more",
        ),
        (
            made(SECOND, choice("d", 0.75, 0.0, total=1.5), chosen=("d",)),
            "d: tied with b, picked in turn or at random",
        ),
    ],
)
def test_reason_describes_the_decision(record: DecisionRecord, reason: str) -> None:
    assert explain.reason(record) == reason
    assert reason in explain.text(record)


def test_header_is_compact_json() -> None:
    told = json.loads(explain.header(RECORD))
    assert told == {
        "profile": "default",
        "tokens": 1600,
        "reason": "a: 0.400 ahead of b, mostly by prefix-cache-scorer",
        "scorers": ["queue-scorer", "prefix-cache-scorer"],
        "endpoints": [
            {
                "name": "a",
                "total": 1.9,
                "scores": [0.5, 0.9],
                "holds": {"cpu": {"ram": 1440}},
                "reasons": {"prefix-cache-scorer": "1440 of 1600 tokens in ram"},
            },
            {"name": "b", "total": 1.5, "scores": [0.75, 0.0], "holds": {}},
            {"name": "c", "removed_by": "decode-filter"},
        ],
    }


@pytest.mark.parametrize("limit", [20, 100, 300, 400, 1000, 4096])
def test_header_stays_within_the_limit_and_counts_the_rest(limit: int) -> None:
    many = [choice(f"pöd-{place}", 0.1, 0.2, total=0.4) for place in range(500)]
    header = explain.header(made(*many, chosen=()), limit)
    if limit >= 100:
        assert len(header) <= limit
    assert header.isascii()
    assert "\n" not in header
    told = json.loads(header)
    assert told["left_out"] + len(told.get("endpoints", [])) == 500
    assert limit < 400 or told["endpoints"]
