from pathlib import Path

import pytest
from rich.console import Console

from kvtier_bench.router import sim, suite
from kvtier_bench.router.sim_trace import TraceShape
from kvtier_bench.rows import read_report


def test_parts_are_written_to_one_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim, "TraceShape", lambda: TraceShape(sessions=10))
    path = tmp_path / "router.json"
    setting = suite.RouterSetting(
        scratch=tmp_path,
        examples=Path("examples/router"),
        envoy=tmp_path / "none",
        model=tmp_path / "none",
    )
    rows = suite.run(
        path, setting, Console(quiet=True), parts=(suite.EPP, suite.ENGINES, suite.SIM)
    )
    told = read_report(path)
    assert (told.kind, told.rows) == ("router", rows)
    assert rows
    assert told.details["sim"]["shape"]["sessions"] == 10
