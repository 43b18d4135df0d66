from pathlib import Path

import pytest
from click.testing import CliRunner

from kvtier_bench.cli import bench


@pytest.mark.parametrize("command", ["micro", "faults", "kill", "ttft", "router", "engine", "demo"])
def test_help_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(bench, [command, "--help"])
    assert result.exit_code == 0
    assert f"  python -m kvtier_bench {command}" in result.output


def test_missing_workload_is_reported_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(bench, ["engine", "--workloads", str(tmp_path)])
    assert result.exit_code == 2
    assert result.output.startswith("error: no workload at")


@pytest.mark.parametrize("command", ["engine", "ttft"])
def test_folder_without_tokenizer_is_reported_in_one_line(command: str, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    model = tmp_path / "model"
    result = CliRunner().invoke(bench, [command, "--model", str(model)])
    assert result.exit_code == 2
    assert result.output.startswith("error: no tokenizer.json in")
