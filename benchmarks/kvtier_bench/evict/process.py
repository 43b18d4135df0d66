"""A command in a process of its own, and what it took: time, CPU, memory, system calls.

Linux only: memory is the proportional set size of all processes of its session, looked at
SAMPLES_PER_S times a second, so that pages shared by forked processes count once.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from kvtier.clock import MonotonicClock, perf_s
from kvtier_bench.processes import PROC, session_processes

SAMPLES_PER_S: Final = 20
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


class Cost(NamedTuple):
    """Of one command and everything it started."""

    seconds: float
    cpu_s: float
    """User and system."""
    peak_bytes: int
    output: str


def run_measured(command: Sequence[str], output: Path) -> Cost:
    """Run it to its end. `output` takes stdout. Raises CalledProcessError where it fails."""
    clock = MonotonicClock()
    peak_bytes = 0
    errors = output.with_name(f"{output.name}.err")
    with output.open("wb") as stdout, errors.open("wb") as stderr:
        began_s = perf_s()
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, start_new_session=True)
        try:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                peak_bytes = max(peak_bytes, _session_bytes(process.pid))
                clock.sleep(1 / SAMPLES_PER_S)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = perf_s() - began_s
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(
            process.returncode, command, stderr=errors.read_text(errors="replace")[-2000:]
        )
    return Cost(seconds, usage.ru_utime + usage.ru_stime, peak_bytes, output.read_text())


def count_calls(command: Sequence[str], scratch: Path) -> int | None:
    """System calls of it and of everything it starts, by strace; None where there is none."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    table = scratch / "strace.txt"
    traced = [strace, "-f", "-qq", "-c", "-U", "calls,name", "-o", str(table), *command]
    subprocess.run(traced, check=True, capture_output=True)
    lines = [line.split() for line in table.read_text().splitlines()]
    return sum(
        int(line[0])
        for line in lines
        if len(line) == 2 and line[0].isdigit() and line[1] != "total"
    )


def _session_bytes(session: int) -> int:
    total = 0
    for stat in session_processes(session):
        try:
            found = _PSS.search((PROC / str(stat.pid) / "smaps_rollup").read_text())
        except OSError:
            continue
        total += int(found[1]) * 1024 if found else 0
    return total
