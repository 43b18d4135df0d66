"""The kill run: processes that are killed at random moments, and the check of what they leave.

At the end every block that a writer logged as published is read and checked, with a newly opened
tier; temporary files are counted, removed as a sweep does, and searched for again.

Processes are forked, because starting three hundred interpreters would take longer than the run.
The parent has one thread. No child outlives the parent by more than a moment, and a child that ends
before it is killed is counted, because none should.
"""

import os
import shutil
import signal
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from rich.console import Console

from kvtier.clock import MonotonicClock, perf_s, seeded, unique_id
from kvtier.tiers.base import BlockMove, Outcome
from kvtier.tiers.shared.posix import PosixStore
from kvtier.tiers.shared.reading import aligned_buffer
from kvtier_bench.kill.roles import (
    LAYOUT,
    ROLES,
    RoleContext,
    SharedCounters,
    chain_keys,
    log_path,
    open_tier,
    payload,
)
from kvtier_bench.rows import Row, Target, describe, measured, report, write_report

KILLS: Final = 300
RUN_ROLES: Final = ("writer",) * 4 + ("evictor",) * 2 + ("reader",)
KILLED_ROLES: Final = ("writer", "evictor")
"""The roles that are killed; readers live through the whole run."""
_PAUSE_S: Final = (0.02, 0.4)
_NONE: Final = Target("<=", 0)
_REPORT_EVERY: Final = 50


class RoleProcesses:
    """The processes of a kill run, one for each of `roles`, restarted when they are killed."""

    def __init__(
        self,
        folder: Path,
        counters: SharedCounters,
        roles: Sequence[str],
        next_seed: Callable[[], int],
    ) -> None:
        """Start the processes; each start takes a seed from `next_seed`."""
        self.failures = 0
        """The number of processes that ended by themselves."""
        self._folder = folder
        self._counters = counters
        self._next_seed = next_seed
        self._roles = list(roles)
        self._pids = [self._begin(number) for number in range(len(self._roles))]

    def kill(self, number: int) -> None:
        """Kill a process with SIGKILL and start it again."""
        self._end(number)
        self._pids[number] = self._begin(number)

    def end(self) -> None:
        """Kill all processes. Idempotent."""
        for number in range(len(self._pids)):
            self._end(number)
        self._pids = []

    def _end(self, number: int) -> None:
        pid = self._pids[number]
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        self.failures += not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)

    def _begin(self, number: int) -> int:
        role = self._roles[number]
        parent = os.getpid()
        context = RoleContext(
            self._folder,
            self._counters,
            number,
            self._next_seed(),
            lambda: os.getppid() == parent,
        )
        pid = os.fork()
        if pid:
            return pid
        try:
            ROLES[role](context)
        except BaseException:
            traceback.print_exc()
        finally:
            # A child must run none of the parent's exit handlers and flush none of its buffers.
            os._exit(3)


class Leftovers(NamedTuple):
    """The findings after all processes have been killed."""

    published: int
    lost: int
    wrong: int
    orphans: int
    orphans_left: int
    quarantined: int


def run(
    json_path: Path | None,
    scratch: Path,
    console: Console,
    *,
    seed: int = 1,
    kills: int = KILLS,
    roles: Sequence[str] = RUN_ROLES,
    pause_s: tuple[float, float] = _PAUSE_S,
) -> list[Row]:
    """Kill `kills` processes, verify, print the rows and write the report.

    Takes a third of a second and 10 MB of `scratch` for each kill. The folder in `scratch` is
    removed, unless a row misses its target.
    """
    folder = scratch / f"kill-{unique_id()[:12]}"
    folder.mkdir(parents=True, mode=0o700)
    began_s = perf_s()
    counters = SharedCounters()
    failures = kill(folder, counters, console, seed=seed, kills=kills, roles=roles, pause_s=pause_s)
    leftovers = examine(folder, [i for i, role in enumerate(roles) if role == "writer"])
    rows = verdicts(counters, leftovers, kills, failures)
    for each in rows:
        console.print(describe(each))
    if json_path is not None:
        details = {
            "seed": seed,
            "cast": list(roles),
            "seconds": round(perf_s() - began_s, 1),
            **{field: counters[field] for field in SharedCounters.FIELDS},
        }
        write_report(json_path, report("kill", rows, details))
    if all(each.met is not False for each in rows):
        shutil.rmtree(folder)
    return rows


def kill(
    folder: Path,
    counters: SharedCounters,
    console: Console,
    *,
    seed: int,
    kills: int,
    roles: Sequence[str],
    pause_s: tuple[float, float],
) -> int:
    """Kill and restart processes `kills` times; return how many ended before they were killed."""
    rng, clock = seeded(seed), MonotonicClock()
    killed = [number for number, role in enumerate(roles) if role in KILLED_ROLES]
    processes = RoleProcesses(folder, counters, roles, lambda: rng.getrandbits(32))
    try:
        for number in range(1, kills + 1):
            clock.sleep(rng.uniform(*pause_s))
            processes.kill(rng.choice(killed))
            if number % _REPORT_EVERY == 0:
                console.print(
                    f"{number} kills: {counters['done']} blocks written, "
                    f"{counters['read_blocks']} read, {counters['wrong']} wrong"
                )
    finally:
        processes.end()
    return processes.failures


def published(folder: Path, writers: Sequence[int]) -> dict[int, int]:
    """Return how many blocks of each chain were published; ignore incomplete last lines."""
    lengths: dict[int, int] = {}
    for number in writers:
        path = log_path(folder, number)
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        for line in lines:
            chain, blocks = (int(part) for part in line.split())
            lengths[chain] = max(lengths.get(chain, 0), blocks)
    return lengths


def examine(folder: Path, writers: Sequence[int]) -> Leftovers:
    """Read and check all published blocks, then sweep temporary files."""
    total = lost = wrong = 0
    tier = open_tier(folder)
    for chain, blocks in published(folder, writers).items():
        keys = chain_keys(chain)[:blocks]
        room = aligned_buffer(blocks * LAYOUT.slot_bytes).reshape(blocks, LAYOUT.slot_bytes)
        moves = [BlockMove(key, room[i]) for i, key in enumerate(keys)]
        total += blocks
        tier.find(keys)  # a block inside a segment is found through those before it
        for move, outcome in zip(moves, tier.read_into(moves), strict=True):
            is_right = np.array_equal(move.buffer[: LAYOUT.block_bytes], payload(move.key))
            lost += outcome is not Outcome.DONE
            wrong += outcome is Outcome.DONE and not is_right
    tier.close()
    store = PosixStore(folder / "kv", direct="never")
    orphans = [each.name for each in store.temporaries()]
    for name in orphans:
        store.remove_temporary(name)
    left = len(list(store.temporaries()))
    quarantined = sum("/quarantine/" in each.name for each in store.occupied())
    store.close()
    return Leftovers(total, lost, wrong, len(orphans), left, quarantined)


def verdicts(
    counters: SharedCounters, leftovers: Leftovers, kills: int, failures: int
) -> list[Row]:
    """Return the rows: violations that must be zero, and enough kills to be significant."""
    return [
        measured("kills", kills, "processes", target=Target(">=", KILLS)),
        measured(
            "published blocks that are lost",
            leftovers.lost,
            "blocks",
            target=_NONE,
            note=f"of {leftovers.published} published with fsync",
        ),
        measured(
            "wrong bytes",
            leftovers.wrong + counters["wrong"],
            "blocks",
            target=_NONE,
            note=f"of {counters['read_blocks']} read meanwhile "
            f"and {leftovers.published} at the end",
        ),
        measured(
            "corrupt or quarantined",
            counters["corrupt"] + leftovers.quarantined,
            "blocks",
            target=_NONE,
            note="a kill may not leave an incomplete file under its final name",
        ),
        measured(
            "temporary files after a sweep",
            leftovers.orphans_left,
            "files",
            target=_NONE,
            note=f"of {leftovers.orphans} that killed writers left since the last sweep",
        ),
        measured("processes that ended by themselves", failures, "processes", target=_NONE),
    ]
