import json
from pathlib import Path

from rich.console import Console

from kvtier_bench.faults.faults import FaultKind
from kvtier_bench.faults.suite import row, run, verdict
from kvtier_bench.faults.tally import Tally
from kvtier_bench.rows import read_report


def test_matrix_has_every_fault_operation_and_store(tmp_path: Path) -> None:
    path = tmp_path / "fault.json"
    with (tmp_path / "out").open("w") as out:
        rows = run(path, tmp_path / "scratch", Console(file=out, width=200), operations=560)
    names = {each.name for each in rows}
    assert len(names) == len(rows) == 2 * 6 * len(FaultKind)
    assert {"folder/read/bit flip", "object/scan/EIO", "folder/core/hung"} <= names
    assert sum(each.operations for each in rows) >= 560
    assert not any(each.value for each in rows)
    stored = json.loads(path.read_text())
    assert stored["kind"] == "faults"
    assert {"operations", "wrong_bytes", "hangs", "exceptions"} <= stored["rows"][0].keys()
    assert len(read_report(path).rows) == len(rows)
    assert list((tmp_path / "scratch").iterdir()) == [], "files were left behind"
    assert verdict(rows) in (tmp_path / "out").read_text()


def test_row_is_met_without_violations_if_its_fault_struck() -> None:
    assert row("a", Tally(), 1).met
    assert not row("a", Tally(), 0).met
    for field in ("wrong_bytes", "hangs", "exceptions", "over_bound"):
        tally = Tally()
        setattr(tally, field, 1)
        spoilt = row("a", tally, 1)
        assert not spoilt.met
        assert spoilt.value == 1
