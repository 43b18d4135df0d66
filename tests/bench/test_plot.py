import builtins
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kvtier.errors import InvalidSettings
from kvtier_bench.plot import BAR_CELLS, draw_summaries, draw_ttft, ttft_bars
from kvtier_bench.runs import RunSummary

SUMMARY = RunSummary(
    mean_ttft_s=1.0,
    p90_ttft_s=1.0,
    mean_e2e_s=1.0,
    p90_e2e_s=1.0,
    tokens_per_s=1000.0,
    cpu_s_per_request=1.0,
    hit_rates={},
)


def test_summaries_are_drawn_to_png(tmp_path: Path, fonts: None) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "demo.png"
    draw_summaries(path, "High cache", [("vLLM alone", SUMMARY), ("kvtier", SUMMARY)])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_drawing_without_matplotlib_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InvalidSettings, match=r"kvtier\[plots\]"):
        draw_summaries(tmp_path / "demo.png", "High cache", [("vLLM alone", SUMMARY)])
    with pytest.raises(InvalidSettings, match=r"kvtier\[plots\]"):
        draw_ttft(tmp_path / "demo.png", "TTFT", [("computed", 6.0)])


def test_times_are_drawn_to_png(tmp_path: Path, fonts: None) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "ttft.png"
    draw_ttft(path, "TTFT", [("computed", 6.0), ("from RAM", 0.3)])
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("encoding", "cell"), [("utf-8", "\u2588"), ("ascii", "#")])
def test_bars_of_times_have_proportional_lengths(encoding: str, cell: str) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=100)
    rows = [("computed", 6.0), ("from RAM", 0.3), ("from disk", 3.0)]
    console.print(ttft_bars("Time to the first token", rows, console))
    file.seek(0)
    lines = file.read().splitlines()
    assert lines[1].count(cell) == BAR_CELLS
    assert lines[3].count(cell) == BAR_CELLS // 2
    assert "0.30 s" in lines[2]
    assert "20x faster" in lines[2]
    assert "faster" not in lines[1]
