import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kvtier_bench.processes import (
    mapped_files,
    read_stat,
    session_cpu_s,
    session_processes,
    stop_session,
)

BURN = "import time\nwhile time.process_time() < 0.3: pass\nprint('burnt', flush=True)\n"


def start(code: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == b"burnt"
    return process


def test_cpu_of_a_session_includes_its_children() -> None:
    # The child uses CPU time, stays alive, and is not the leader of the session.
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {BURN + 'time.sleep(60)'!r}])\n"
        "time.sleep(60)\n"
    )
    process = start(code)
    try:
        assert len(session_processes(process.pid)) == 2
        assert session_cpu_s(process.pid) >= 0.25
    finally:
        stop_session(process, grace_s=20)
    assert session_processes(process.pid) == []


def test_cpu_of_a_session_includes_ended_children() -> None:
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.run([sys.executable, '-c', {BURN!r}], stdout=subprocess.DEVNULL)\n"
        "print('burnt', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = start(code)
    try:
        assert len(session_processes(process.pid)) == 1
        assert session_cpu_s(process.pid) >= 0.25
    finally:
        stop_session(process, grace_s=5)


def test_session_that_ignores_sigterm_is_killed() -> None:
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('burnt', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = start(code)
    assert stop_session(process, grace_s=0.3) is False
    assert process.returncode == -signal.SIGKILL
    assert session_processes(process.pid) == []


def test_orphan_of_a_session_is_terminated() -> None:
    code = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('burnt', flush=True)\n"
    )
    process = start(code)
    process.wait()
    assert len(session_processes(process.pid)) == 1
    assert stop_session(process, grace_s=20) is True
    assert session_processes(process.pid) == []


def test_session_ends_by_sigterm() -> None:
    process = start("import time; print('burnt', flush=True); time.sleep(60)")
    assert stop_session(process, grace_s=20) is True
    assert process.returncode == -signal.SIGTERM


def test_mapped_files_of_a_session_are_found(tmp_path: Path) -> None:
    path = tmp_path / "region.mmap"
    path.write_bytes(b"x" * 4096)
    code = (
        "import mmap, time\n"
        f"f = open({str(path)!r}, 'r+b'); m = mmap.mmap(f.fileno(), 0)\n"
        "print('burnt', flush=True); time.sleep(60)\n"
    )
    process = start(code)
    try:
        assert mapped_files(process.pid, str(tmp_path)) == {path}
        assert mapped_files(process.pid, str(tmp_path / "other")) == set()
    finally:
        stop_session(process, grace_s=5)


def test_ended_process_has_no_stat() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert read_stat(process.pid) is None


def test_own_stat_has_own_session() -> None:
    stat = read_stat(os.getpid())
    assert stat is not None
    assert stat.session == os.getsid(0)
    assert stat.cpu_s == pytest.approx(sum(os.times()[:4]), abs=0.5)
