from pathlib import Path

import pytest
from click.testing import CliRunner

from kvtier.cli.bench import bench


@pytest.mark.parametrize("command", ["micro", "engine", "demo"])
def test_help_teaches_with_an_example(command: str) -> None:
    result = CliRunner().invoke(bench, [command, "--help"])
    assert result.exit_code == 0
    assert f"  kvtier bench {command}" in result.output


@pytest.mark.parametrize("command", ["engine", "demo"])
def test_a_missing_workload_is_one_clear_error(command: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(bench, [command, "--workloads", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.startswith("Error: no workload at")


def test_an_unknown_row_is_refused_before_anything_starts(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    model = tmp_path / "model"
    result = CliRunner().invoke(bench, ["engine", "--model", str(model), "--row", "nobody"])
    assert result.exit_code == 1
    assert "tokenizer.json" in result.output
