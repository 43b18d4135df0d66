import json

from kvtier.evictor import report
from kvtier.evictor.report import REASONS, PassReport


def test_report_totals_and_json() -> None:
    made = PassReport()
    made.freed["ttl"].add(5)
    made.freed["bound"].add(7)
    made.tree("t", is_foreign=True).files = 3
    assert (made.freed_files, made.freed_bytes) == (2, 12)
    found = json.loads(made.to_json())
    assert found["freed_bytes"] == 12
    assert set(found["freed"]) == set(REASONS)
    assert found["trees"]["t"]["layout"] == "vLLM fs"
    assert b"\n" not in made.to_json()


def test_reports_share_no_state() -> None:
    PassReport().freed["ttl"].add(5)
    PassReport().note_unknown("x", 1)
    assert PassReport().freed_files == 0
    assert PassReport().unknown == []


def test_report_bounds_names() -> None:
    made = PassReport()
    for number in range(report.NAMES_MAX + 5):
        made.note_unknown(str(number), 2)
        made.note_broken(str(number), "why")
    assert len(made.unknown) == len(made.broken) == report.NAMES_MAX
    assert made.unknown_files == made.broken_files == report.NAMES_MAX + 5
    assert made.unknown_bytes == 2 * (report.NAMES_MAX + 5)
