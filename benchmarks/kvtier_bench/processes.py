"""CPU time, memory and termination of process trees, such as a server and its workers.

A tree is identified by its session, because a child whose parent dies changes its parent but keeps
its session; each command is therefore started in a session of its own. On a noisy machine CPU
seconds say more than wall time. Linux only: reads /proc.

`run_measured` samples memory as the proportional set size of the whole session, so that pages that
forked processes share count once.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from kvtier.clock import Clock, MonotonicClock, perf_s

PROC = Path("/proc")
KILL_GRACE_S = 10.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SAMPLES_PER_S: Final = 20
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


class ChildProcess(Protocol):
    """The common interface of `subprocess.Popen` and of a process from the fork server."""

    @property
    def pid(self) -> int:
        """The process id, which for the leader of a session is also the session id."""
        ...

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code. Raises subprocess.TimeoutExpired."""
        ...

    def send_signal(self, number: int, /) -> None:
        """Send a signal, unless the process has ended."""
        ...


class ProcessStat(NamedTuple):
    """The session of a process, and the CPU seconds of the process and its reaped children."""

    pid: int
    session: int
    cpu_s: float


def read_stat(pid: int) -> ProcessStat | None:
    """Read /proc/<pid>/stat; return None if the process has ended."""
    try:
        raw = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The command name is in parentheses and may itself contain spaces and parentheses.
    fields = raw.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    user, system, reaped_user, reaped_system = (int(field) for field in fields[11:15])
    ticks = user + system + reaped_user + reaped_system
    return ProcessStat(pid, int(fields[3]), ticks / _TICKS_PER_S)


def session_processes(session: int) -> list[ProcessStat]:
    """Return the living processes of a session. Reads one file for each process of the machine."""
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]
    stats = (read_stat(pid) for pid in pids)
    return [stat for stat in stats if stat is not None and stat.session == session]


def session_cpu_s(session: int) -> float:
    """Return the user and system CPU seconds that all processes of the session have used so far."""
    return sum(stat.cpu_s for stat in session_processes(session))


def mapped_files(session: int, under: str | tuple[str, ...]) -> set[Path]:
    """Return the files whose paths begin with `under` and that a process of the session maps."""
    found: set[Path] = set()
    for stat in session_processes(session):
        with contextlib.suppress(OSError):
            for line in (PROC / str(stat.pid) / "maps").read_text().splitlines():
                columns = line.split(maxsplit=5)
                if len(columns) == 6 and columns[5].startswith(under):
                    found.add(Path(columns[5]))
    return found


def stop_session(process: ChildProcess, grace_s: float, clock: Clock | None = None) -> bool:
    """Terminate a session with SIGTERM, and kill what is alive after `grace_s` seconds.

    Return True if nothing had to be killed. Idempotent.
    """
    clock = clock or MonotonicClock()
    session = process.pid
    process.send_signal(signal.SIGTERM)
    if _all_gone(process, clock, grace_s):
        return True
    _signal_all(session, signal.SIGKILL)
    # Killed processes remain visible for a moment.
    process.wait()
    _all_gone(process, clock, KILL_GRACE_S)
    return False


def _all_gone(process: ChildProcess, clock: Clock, grace_s: float) -> bool:
    deadline_s = clock.now_s() + grace_s
    while clock.now_s() < deadline_s:
        if process.poll() is not None:
            if not session_processes(process.pid):
                return True
            # The leader has ended, so it cannot terminate its children any more.
            _signal_all(process.pid, signal.SIGTERM)
        clock.sleep(0.1)
    return False


def _signal_all(session: int, number: signal.Signals) -> None:
    for stat in session_processes(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(stat.pid, number)


class CommandCost(NamedTuple):
    """The cost of a command and of every process it started."""

    seconds: float
    cpu_s: float
    """User and system time."""
    peak_bytes: int
    output: str


def run_measured(command: Sequence[str], output: Path) -> CommandCost:
    """Run `command` to its end with stdout in the file `output`, and return its cost.

    Raises CalledProcessError if it fails.
    """
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
    return CommandCost(seconds, usage.ru_utime + usage.ru_stime, peak_bytes, output.read_text())


def count_calls(command: Sequence[str], scratch: Path) -> int | None:
    """Count the system calls of `command` and its children; None if strace is not installed."""
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
