import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier_bench.kill import suite
from kvtier_bench.kill.roles import RoleContext, SharedCounters
from kvtier_bench.kill.suite import RoleProcesses


def tell(context: RoleContext) -> None:
    """Write the own pid to a file, and run until the parent ends."""
    (context.folder / f"{context.number}-{context.seed}").write_text(str(os.getpid()))
    while context.parent_lives():
        time.sleep(0.01)


def pids(folder: Path, count: int) -> list[int]:
    while len(found := [path for path in folder.iterdir() if path.read_text()]) < count:
        time.sleep(0.01)
    return [int(path.read_text()) for path in found]


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def seeds() -> Iterator[int]:
    return itertools.count()


def test_killed_process_is_started_again(
    tmp_path: Path, seeds: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "ROLES", {"teller": tell})
    processes = RoleProcesses(tmp_path, SharedCounters(), ["teller", "teller"], lambda: next(seeds))
    first = pids(tmp_path, 2)
    processes.kill(0)
    processes.kill(0)
    everybody = pids(tmp_path, 3)
    assert sum(map(lives, first)) == 1
    processes.end()
    processes.end()
    assert not any(map(lives, everybody))
    assert processes.failures == 0


def test_process_that_ends_by_itself_is_counted(
    tmp_path: Path,
    seeds: Iterator[int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(suite, "ROLES", {"failer": lambda context: 1 // 0})
    processes = RoleProcesses(tmp_path, SharedCounters(), ["failer"], lambda: next(seeds))
    os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
    processes.end()
    assert processes.failures == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_child_ends_after_its_parent(
    tmp_path: Path, seeds: Iterator[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "ROLES", {"teller": tell})
    parent = os.fork()
    if not parent:
        try:
            RoleProcesses(tmp_path, SharedCounters(), ["teller"], lambda: next(seeds))
            time.sleep(60)
        finally:
            os._exit(1)
    (orphan,) = pids(tmp_path, 1)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    for _ in range(1000):
        if not lives(orphan) or "Z" in Path(f"/proc/{orphan}/stat").read_text():
            return
        time.sleep(0.01)
    pytest.fail("the child outlives its parent")
