"""Killed processes: afterwards every visible block is whole, and acknowledged ones are there."""

import mmap
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kvtier.tiers.base import Outcome
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.files import SystemCalls
from tests.tiers.disk.slabs import held, key, make, read, write

KILLS = 24
BLOCKS = 48
NUMBERS = 96
UNKNOWN, KEPT, GONE = 0, 1, 2


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a fork of this process; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    finally:
        os._exit(3)  # No code of the test runner may run in the child.


def shared_bytes(count: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(mmap.mmap(-1, count), dtype=np.uint8)


def churn(tier: DiskTier, seed: int, mine: range, acknowledged: npt.NDArray[np.uint8]) -> None:
    """Write and delete blocks forever, and record what was acknowledged."""
    rng = random.Random(seed)
    while True:
        numbers = sorted(rng.sample(mine, 6))
        if rng.random() < 0.55:
            uncertain = [number for number in numbers if acknowledged[number] != KEPT]
            acknowledged[uncertain] = UNKNOWN
            for number, outcome in zip(numbers, write(tier, numbers), strict=True):
                if outcome is Outcome.DONE:
                    acknowledged[number] = KEPT
        else:
            acknowledged[numbers] = UNKNOWN
            tier.delete([key(number) for number in numbers])
            acknowledged[numbers] = GONE


def churn_on_two_threads(folder: Path, seed: int, acknowledged: npt.NDArray[np.uint8]) -> None:
    tier = make(folder, BLOCKS)
    halves = (range(NUMBERS // 2), range(NUMBERS // 2, NUMBERS))
    second = threading.Thread(target=churn, args=(tier, -seed, halves[1], acknowledged))
    second.start()
    churn(tier, seed, halves[0], acknowledged)


def test_killed_process_leaves_whole_blocks_at_random_moments(tmp_path: Path) -> None:
    folder = tmp_path / "slab"
    acknowledged = shared_bytes(NUMBERS)
    rng = random.Random(11)
    survivors = deletions = 0
    for seed in range(1, KILLS + 1):
        pid = in_child(lambda seed=seed: churn_on_two_threads(folder, seed, acknowledged))  # type: ignore[misc]
        time.sleep(rng.uniform(0.002, 0.12))
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        tier = make(folder, BLOCKS)
        visible = held(tier)
        kept = set(np.flatnonzero(acknowledged == KEPT).tolist())
        gone = set(np.flatnonzero(acknowledged == GONE).tolist())
        assert kept <= visible
        assert not gone & visible
        assert read(tier, sorted(visible)) == [Outcome.DONE] * len(visible)
        assert tier.counters.corruptions == 0
        survivors += len(kept)
        deletions += len(gone)
        acknowledged[:] = GONE
        acknowledged[sorted(visible)] = KEPT
        tier.close()
    assert survivors > KILLS
    assert deletions > KILLS


class MortalFiles(SystemCalls):
    """System calls that kill the process at its `fatal`th call that changes a file.

    `torn`: half of the bytes of that call are written first.
    """

    def __init__(self, fatal: int, torn: bool) -> None:
        self.left = fatal
        self.torn = torn

    def _step(self) -> bool:
        """Return True if this is the last call; die at once unless it is to be torn."""
        self.left -= 1
        if self.left == 0 and not self.torn:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.left == 0

    def open(self, name: str, flags: int, folder_fd: int) -> int:
        if flags & os.O_CREAT:
            self._end(self._step())
        return super().open(name, flags, folder_fd)

    def pwritev(self, fd: int, buffers: object, offset: int) -> int:
        last = self._step()
        kept = list(buffers)  # type: ignore[call-overload]
        if last:
            kept = [buffer[: len(buffer) // 2] for buffer in kept[:1]]
        written = super().pwritev(fd, kept, offset)
        self._end(last)
        return written

    def write(self, fd: int, data: bytes) -> int:
        last = self._step()
        written = super().write(fd, data[: len(data) // 2] if last else data)
        self._end(last)
        return written

    def allocate(self, fd: int, size: int) -> None:
        self._end(self._step())
        super().allocate(fd, size)

    def truncate(self, fd: int, size: int) -> None:
        self._end(self._step())
        super().truncate(fd, size)

    def sync_data(self, fd: int) -> None:
        self._end(self._step())
        super().sync_data(fd)

    def rename(self, old: str, new: str, folder_fd: int) -> None:
        self._end(self._step())
        super().rename(old, new, folder_fd)

    def unlink(self, name: str, folder_fd: int) -> None:
        self._end(self._step())
        super().unlink(name, folder_fd)

    def _end(self, last: bool) -> None:
        if last:
            os.kill(os.getpid(), signal.SIGKILL)


def run_every_step(folder: Path, files: SystemCalls, acknowledged: npt.NDArray[np.uint8]) -> None:
    """Perform every kind of step, in two runs; the second starts from a checkpoint."""
    for first in (0, 10):
        tier = make(folder, 8, files=files)
        acknowledged[first : first + 5] = [
            KEPT if outcome is Outcome.DONE else UNKNOWN
            for outcome in write(tier, range(first, first + 5))
        ]
        acknowledged[first : first + 3] = UNKNOWN
        tier.delete([key(number) for number in range(first, first + 3)])
        acknowledged[first : first + 3] = GONE
        for number in range(first + 5, first + 7):
            if write(tier, [number]) == [Outcome.DONE]:
                acknowledged[number] = KEPT
        tier.close()
    os._exit(0)


@pytest.mark.parametrize("torn", [False, True], ids=["before", "torn"])
def test_killed_process_leaves_whole_blocks_between_any_two_calls(
    tmp_path: Path, torn: bool
) -> None:
    fatal = 0
    ended = False
    while not ended:
        fatal += 1
        folder = tmp_path / f"slab-{fatal}"
        acknowledged = shared_bytes(32)
        pid = in_child(
            lambda: run_every_step(folder, MortalFiles(fatal, torn), acknowledged)  # noqa: B023
        )
        ended = os.waitpid(pid, 0)[1] == 0
        tier = make(folder, 8)
        visible = held(tier)
        assert set(np.flatnonzero(acknowledged == KEPT).tolist()) <= visible
        assert not set(np.flatnonzero(acknowledged == GONE).tolist()) & visible
        assert read(tier, sorted(visible)) == [Outcome.DONE] * len(visible)
        assert write(tier, range(20, 28)).count(Outcome.DONE) == 8 - len(visible)
        assert not [path for path in folder.iterdir() if "temporary" in path.name]
        tier.close()
    assert fatal > 30, "the runs should make more calls"


def test_forked_child_does_not_keep_folder_of_killed_parent_locked(tmp_path: Path) -> None:
    """Engines fork workers, and the lock must be released with the process that took it."""
    reader, writer = os.pipe()

    def work() -> None:
        os.write(writer, b"%d" % os.getpid())
        time.sleep(60)

    def hold_and_fork() -> None:
        tier = make(tmp_path / "slab", 8)
        write(tier, [1, 2])
        in_child(work)
        time.sleep(60)

    owner = in_child(hold_and_fork)
    worker = int(os.read(reader, 20))
    try:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        tier = make(tmp_path / "slab", 8)
        assert read(tier, [1, 2]) == [Outcome.DONE] * 2
        tier.close()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(reader)
        os.close(writer)
