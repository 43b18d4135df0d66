import logging
import os
from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.prompt import TextPrompt
from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest
from kvtier.router.choose.decision import RoutingDecision
from kvtier.router.choose.record import read_records
from kvtier.router.route.reporting import DecisionLog


def decided(identity: str) -> RoutingDecision:
    request = InferenceRequest(
        request_id=identity,
        model="m",
        prompt=TextPrompt(b"a secret", "m"),
        headers={"authorization": "Bearer secret", "x-session-id": "s"},
    )
    candidate = Candidate(Endpoint(name="a", address="a:1", models=frozenset("m")), {})
    decision = RoutingDecision("p", request, [candidate], 1.0)
    decision.totals = [0.0]
    decision.chosen = [candidate]
    return decision


def test_decision_log_is_appended_and_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for identity in ("1", "2"):
        log = DecisionLog(str(path))
        log.add(decided(identity), frozenset(("x-session-id",)))
        log.close()
    records = list(read_records(str(path)))
    assert [record.request_id for record in records] == ["1", "2"]
    assert records[0].headers == {"x-session-id": "s"}
    assert b"secret" not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


def test_decision_log_begins_new_line_after_cut_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    log = DecisionLog(str(path))
    log.add(decided("whole"), frozenset())
    with monkeypatch.context() as full:
        write = os.write
        full.setattr(os, "write", lambda descriptor, text: write(descriptor, text[:30]))
        log.add(decided("a full disk cuts it"), frozenset())
    log.add(decided("after the disk was full"), frozenset())
    log.close()
    with path.open("ab") as killed:
        killed.write(b'{"request_id":"a kill cu')
    log = DecisionLog(str(path))
    log.add(decided("after the kill"), frozenset())
    log.add(decided("the last"), frozenset())
    log.close()
    names = [record.request_id for record in read_records(str(path))]
    assert names == ["whole", "after the disk was full", "after the kill", "the last"]


def test_decision_log_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="--decisions"):
        DecisionLog(str(tmp_path / "none" / "log.jsonl"))


def test_decision_log_that_cannot_be_written_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    log = DecisionLog("/dev/full" if os.path.exists("/dev/full") else os.devnull)
    with caplog.at_level(logging.WARNING):
        log.add(decided("1"), frozenset())
        log.add(decided("2"), frozenset())
    log.close()
    assert len(caplog.records) == (1 if os.path.exists("/dev/full") else 0)
