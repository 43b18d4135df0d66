"""Compare kvtier's shared tier with LMCache's and AIBrix's storage tiers on the same blocks.

Every contender is a process with an environment of its own, which lives for all rounds of a block
size. In a round each writes a batch of 128 MiB, then each reads it, then those without O_DIRECT
read it again from the page cache, then each removes it; the order is drawn anew for each step. The
first read finds none of the batch in memory. After each command, dirty pages are synced and the
contender becomes idle, so that no contender pays for another one's write-back or compaction. The
bytes of every read are compared. Ratios are medians over the rounds of times within one round.

    python benchmarks/peers/storage/run.py --json result.json     # after install.sh
"""

import argparse
import json
import os
import random
import select
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from worker import BATCHES, Batch, digest

from kvtier_bench.micro.timing import paired_ratio, spread
from kvtier_bench.rows import Row, Target, measured, report, write_report

HERE = Path(__file__).parent
ENVIRONMENTS = Path("build/peers")
SIZES = {"128 KiB": 128 << 10, "1 MiB": 1 << 20, "4 MiB": 4 << 20}
BATCH_BYTES = 128 << 20
PHASES = {"write": "write", "read": "read", "cached read": "read", "clean": "clean"}
"""The phases that are measured, and the driver's command for each."""
JUDGED = ("write", "read", "cached read")
_WARM_UP = 2
_START_S = 180.0
_ANSWER_S = 120.0
_REST_S = 10.0


class Contender(NamedTuple):
    """One system in one configuration, described in `told`; `threads` 0 is the system's default."""

    name: str
    system: str
    threads: int
    direct: bool
    told: str
    engine: str = ""


CONTENDERS = (
    Contender("kvtier", "kvtier", 4, True, "4 threads, O_DIRECT"),
    Contender("kvtier cached", "kvtier", 4, False, "4 threads, page cache"),
    Contender("kvtier default", "kvtier", 0, True, "8 threads (default), O_DIRECT"),
    Contender("kvtier cached default", "kvtier", 0, False, "8 threads (default), page cache"),
    Contender("fs_native", "lmcache", 4, True, "4 workers (default), O_DIRECT", "fs_native"),
    Contender(
        "fs_native cached", "lmcache", 4, False, "4 workers (default), page cache", "fs_native"
    ),
    Contender("raw_block posix", "lmcache", 4, True, "4 + 4 workers, O_DIRECT", "posix"),
    Contender("raw_block io_uring", "lmcache", 4, True, "4 + 4 workers, O_DIRECT", "io_uring"),
    Contender(
        "raw_block default", "lmcache", 0, True, "2 + 4 workers (default), O_DIRECT", "posix"
    ),
    Contender("rocksdb", "aibrix", 4, False, "4 workers, page cache"),
    Contender("rocksdb default", "aibrix", 0, False, "8 workers (default), page cache"),
)
PAIRS = (
    ("kvtier", "fs_native"),
    ("kvtier", "raw_block posix"),
    ("kvtier", "raw_block io_uring"),
    ("kvtier default", "raw_block default"),
    ("kvtier cached", "fs_native cached"),
    ("kvtier cached", "rocksdb"),
    ("kvtier cached default", "rocksdb default"),
    ("kvtier default", "rocksdb default"),
)
"""Configurations of kvtier and the peers they are compared with. They correspond to each other,
except for the last pair, which compares the defaults."""
SHOWN = {"lmcache": "LMCache", "aibrix": "AIBrix", "kvtier": "kvtier"}


class Driver:
    """The process of a contender. Raises RuntimeError with the end of its log if it fails."""

    def __init__(self, contender: Contender, scratch: Path, block_bytes: int) -> None:
        self.contender = contender
        self._folder = scratch / contender.name.replace(" ", "-")
        self._log = self._folder.with_suffix(".log")
        command: list[str | Path] = [
            _python(contender.system),
            HERE / f"driver_{contender.system}.py",
            f"--folder={self._folder}",
            f"--block-bytes={block_bytes}",
            f"--count={BATCH_BYTES // block_bytes}",
            f"--threads={contender.threads}",
            f"--engine={contender.engine}",
            *(["--direct"] if contender.direct else []),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env={**os.environ, "LMCACHE_TRACK_USAGE": "false"},
            )

    def wait_ready(self) -> None:
        """Wait until the contender has started."""
        self._answer(_START_S)

    def ask(self, verb: str, batch: int) -> dict[str, object]:
        """Send a command, wait until the contender is idle again, and return its answer.

        The answer contains the seconds taken and, for a read, a digest.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": verb, "batch": batch}).encode() + b"\n")
        answer = self._answer(_ANSWER_S)
        os.sync()
        self._wait_at_rest()
        return answer

    def forget(self, batch: int) -> None:
        """Flush a written batch to files, and drop them from the page cache."""
        self.ask("settle", batch)
        for path in self._folder.rglob("*"):
            if path.is_file():
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self, patience_s: float) -> dict[str, object]:
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], patience_s)
        line = stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(
                f"{self.contender.name}: "
                f"{'ended' if ready else f'no answer in {patience_s:.0f} s'}; its log ends with\n"
                + "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
            )
        answer: dict[str, object] = json.loads(line)
        return answer

    def _wait_at_rest(self) -> None:
        """Wait until the process uses no CPU for 50 ms, after flushes and compactions."""
        deadline_s = time.monotonic() + _REST_S
        before = self._ticks()
        while time.monotonic() < deadline_s:
            time.sleep(0.05)
            now = self._ticks()
            if now == before:
                return
            before = now

    def _ticks(self) -> int:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])


Seconds = dict[str, dict[str, list[float]]]
"""Seconds by contender and phase, one value for each round."""


def measure(
    scratch: Path, block_bytes: int, rounds: int, contenders: Sequence[Contender]
) -> Seconds:
    """Run all contenders on one block size. Raises RuntimeError if one returns wrong bytes."""
    seconds: Seconds = {one.name: {phase: [] for phase in PHASES} for one in contenders}
    expected = Batch(BATCH_BYTES // block_bytes, block_bytes)
    shuffled = random.Random(block_bytes)
    drivers: list[Driver] = []
    try:
        for one in contenders:
            drivers.append(Driver(one, scratch, block_bytes))  # noqa: PERF401  # closed if one fails
        for driver in drivers:
            driver.wait_ready()
        for turn in range(_WARM_UP + rounds):
            expected.become(turn)
            right = digest(expected.blocks)
            for phase, verb in PHASES.items():
                for driver in shuffled.sample(drivers, len(drivers)):
                    if phase == "cached read" and driver.contender.direct:
                        continue
                    name, answer = driver.contender.name, driver.ask(verb, turn)
                    if verb == "write":
                        driver.forget(turn)
                    if verb == "read" and answer["digest"] != right:
                        raise RuntimeError(f"{name} returned other bytes than it was given")
                    if turn >= _WARM_UP:
                        seconds[name][phase].append(float(str(answer["seconds"])))
    finally:
        for driver in drivers:
            driver.close()
    return seconds


def judge(label: str, seconds: Seconds) -> list[Row]:
    """Return a row for each pair and phase; the target is to be faster than the peer."""
    known = {one.name: one for one in CONTENDERS}
    return [
        measured(
            f"shared {phase}, {label} blocks, {ours} against {SHOWN[known[peer].system]} {peer}",
            (speed := BATCH_BYTES / 1e9 / statistics.median(seconds[ours][phase])),
            "GB/s",
            reference=speed / paired_ratio(seconds[ours][phase], seconds[peer][phase]),
            target=Target(">=", 1.0),
            note=f"kvtier {known[ours].told}, {spread(seconds[ours][phase])}; "
            f"{peer} {known[peer].told}, {spread(seconds[peer][phase])}",
        )
        for ours, peer in PAIRS
        for phase in JUDGED
        if seconds[ours][phase] and seconds[peer][phase]
    ]


def versions() -> dict[str, str]:
    """Return the versions of the packages in the peers' environments."""
    script = (
        "import importlib.metadata as m, json;"
        "print(json.dumps({d.name: d.version for d in m.distributions() if d.name in"
        " ('lmcache', 'lmcache-rust-raw-block-io', 'aibrix-kvcache', 'rocksdict', 'torch')}))"
    )
    return {
        f"{system}: {name}": version
        for system in ("lmcache", "aibrix")
        for name, version in json.loads(
            subprocess.check_output([_python(system), "-c", script])
        ).items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the report to this file")
    parser.add_argument("--scratch", type=Path, default=Path("build/bench/storage-peers"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", action="append", choices=list(SIZES), help="default: all")
    options = parser.parse_args()
    if not 1 <= options.rounds <= BATCHES - _WARM_UP:
        parser.error(f"--rounds: 1 to {BATCHES - _WARM_UP}")
    missing = [one for one in ("lmcache", "aibrix") if not _python(one).exists()]
    if missing:
        parser.error(f"no {missing[0]} in {ENVIRONMENTS}: run {HERE / 'install.sh'}")
    rows: list[Row] = []
    details: dict[str, object] = {"versions": versions(), "batch_bytes": BATCH_BYTES}
    for label in options.size or SIZES:
        shutil.rmtree(options.scratch, ignore_errors=True)
        options.scratch.mkdir(parents=True, mode=0o700)
        try:
            seconds = measure(options.scratch.resolve(), SIZES[label], options.rounds, CONTENDERS)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            shutil.rmtree(options.scratch, ignore_errors=True)
        details[label] = seconds
        found = judge(label, seconds)
        for row in found:
            print(f"{row.ratio:6.2f}  {row.value:6.2f} {row.unit}  {row.name}", flush=True)
        rows += found
        if options.json is not None:
            write_report(options.json, report("storage-peers", rows, details))
    return 0


def _python(system: str) -> Path:
    if system == "kvtier":
        return Path(sys.executable)
    return (ENVIRONMENTS / system / "bin" / "python").absolute()


if __name__ == "__main__":
    sys.exit(main())
