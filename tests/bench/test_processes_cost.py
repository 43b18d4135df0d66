import subprocess
import sys
from pathlib import Path

import pytest

from kvtier_bench.processes import count_calls, run_measured

BUSY = """
import subprocess, sys, time
kept = bytearray(80 << 20)
subprocess.run([sys.executable, "-c", "sum(range(8_000_000))"], check=True)
time.sleep(0.3)
print("done")
"""


def test_run_measured_includes_child_processes(tmp_path: Path) -> None:
    cost = run_measured([sys.executable, "-c", BUSY], tmp_path / "out")
    assert cost.output == "done\n"
    assert cost.seconds >= 0.3
    assert cost.cpu_s > 0.05
    assert 80 << 20 <= cost.peak_bytes < 400 << 20


def test_run_measured_raises_with_the_commands_errors(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        run_measured([sys.executable, "-c", "raise SystemExit('no room')"], tmp_path / "out")
    assert raised.value.stderr == "no room\n"


def test_count_calls_includes_child_processes(tmp_path: Path) -> None:
    few = count_calls(["true"], tmp_path)
    many = count_calls(["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do /bin/true; done"], tmp_path)
    if few is None or many is None:
        pytest.skip("strace is not installed")
    assert 0 < 5 * few < many


def test_count_calls_without_strace_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert count_calls(["true"], tmp_path) is None
