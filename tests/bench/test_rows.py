import json
from pathlib import Path

import pytest

from kvtier_bench.rows import (
    Row,
    Target,
    describe,
    measured,
    read_commit,
    read_machine,
    read_report,
    report,
    write_report,
)


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        (Target("<=", 1.3), 1.3, True),
        (Target("<=", 1.3), 1.31, False),
        (Target(">=", 15), 15, True),
        (Target(">=", 15), 14.9, False),
    ],
)
def test_target_is_met_by_its_bound(target: Target, value: float, met: bool) -> None:
    assert target.met_by(value) is met


def test_target_applies_to_the_ratio_with_a_reference() -> None:
    row = measured("ttft", 0.26, "s", reference=0.2, target=Target("<=", 1.3))
    assert row.ratio == pytest.approx(1.3)
    assert measured("ttft", 0.3, "s", reference=0.2, target=Target("<=", 1.3)).met is False


def test_target_applies_to_the_value_without_a_reference() -> None:
    row = measured("gap", 0.93, "share", target=Target(">=", 0.9))
    assert (row.ratio, row.met, row.target) == (None, True, ">= 0.9")


def test_row_without_target_or_with_zero_reference_has_no_verdict() -> None:
    assert measured("a", 1, "s").met is None
    zero = measured("b", 1, "s", reference=0.0, target=Target("<=", 1))
    assert (zero.ratio, zero.met) == (None, None)


def test_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [measured("a", 1.5, "s", reference=1.0, target=Target("<=", 1))]
    path = tmp_path / "results" / "engine-today.json"
    written = report("engine", rows, {"runs": {"low": [1, 2]}})
    write_report(path, written)
    assert read_report(path) == written
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_row_is_written_with_all_fields(tmp_path: Path) -> None:
    path = tmp_path / "micro.json"
    write_report(path, report("micro", [measured("a", 1, "s")]))
    raw = json.loads(path.read_text())
    assert {"name", "value", "unit", "reference", "ratio", "target", "met"} <= set(raw["rows"][0])


def test_report_names_machine_and_commit_and_no_absolute_path(tmp_path: Path) -> None:
    path = tmp_path / "micro.json"
    write_report(path, report("micro", [measured("a", 1, "s")]))
    raw = json.loads(path.read_text())
    assert raw["machine"]["cores"] >= 1
    assert raw["machine"]["ram_bytes"] > 2**28
    assert raw["machine"]["versions"]["msgspec"]
    assert raw["commit"]
    assert '"/' not in path.read_text()


def test_machine_has_cpu_kernel_and_python() -> None:
    machine = read_machine()
    assert machine.cpu
    assert machine.kernel
    assert machine.python.startswith("3.")


def test_commit_outside_a_checkout_is_unknown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert read_commit() == "unknown"


def test_equal_rows_compare_equal() -> None:
    assert measured("a", 1, "s") == Row(name="a", value=1, unit="s")


def test_description_of_a_missed_row_has_ratio_target_and_note() -> None:
    row = measured("x", 8.0, "GB/s", reference=10.0, target=Target(">=", 0.9), note="why")
    line = describe(row)
    assert all(part in line for part in ("missed", "0.80", ">= 0.9", "why"))


def test_description_of_a_row_without_target_has_no_verdict() -> None:
    assert "met" not in describe(measured("x", 1.0, "s")).replace("x", "")
