import builtins
from pathlib import Path
from typing import Any

import pytest

from kvtier.errors import InvalidSettings
from kvtier_bench.plot import draw_summaries
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


def test_a_picture_is_written(tmp_path: Path, fonts: None) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "demo.png"
    draw_summaries(path, "High cache", [("vLLM alone", SUMMARY), ("kvtier", SUMMARY)])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_error_names_the_extra(
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
