"""The report of a check, whose JSON is a stable interface."""

import msgspec
import pytest

from kvtier.inspection import report
from kvtier.inspection.report import NOTICES, PROBLEMS, CheckReport, Finding


def fresh() -> CheckReport:
    return CheckReport(path="/kv", spaces=[], started_s=1.0)


def test_report_fields_are_stable() -> None:
    assert set(msgspec.json.decode(msgspec.json.encode(fresh()))) >= {
        *("format", "path", "spaces", "complete", "clean", "resumed_after", "started_s"),
        *("segments", "blocks", "bytes", "unverified", "vanished", "quarantined"),
        *("problems_found", "problems", "notices_found", "notices"),
    }
    finding = Finding(file="x", kind="segment", reason="y")
    assert set(msgspec.to_builtins(finding)) >= {"file", "kind", "reason", "repaired"}
    assert fresh().format == 1


def test_finding_kinds_are_stable() -> None:
    assert set(PROBLEMS) >= {
        *("manifest", "segment", "checksum", "newer", "misplaced", "irregular", "unreadable"),
    }
    assert set(NOTICES) >= {"temporary", "unknown", "foreign"}
    assert not set(PROBLEMS) & set(NOTICES)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_problem_makes_the_report_unclean(kind: str) -> None:
    found = fresh()
    found.add(Finding(file="x", kind=kind, reason="y"))
    assert (found.clean, found.problems_found, found.notices_found) == (False, 1, 0)


@pytest.mark.parametrize("kind", NOTICES)
def test_notice_keeps_the_report_clean(kind: str) -> None:
    found = fresh()
    found.add(Finding(file="x", kind=kind, reason="y"))
    assert (found.clean, found.problems_found, found.notices_found) == (True, 0, 1)


def test_all_findings_are_counted_and_the_first_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "FINDINGS_KEPT", 3)
    found = fresh()
    for number in range(5):
        found.add(Finding(file=str(number), kind="segment", reason="y"))
    assert found.problems_found == 5
    assert [each.file for each in found.problems] == ["0", "1", "2"]
    assert fresh().problems == []
