"""Three ways to evict from a tree of many small files, measured one after another.

kvtier brings the tree below its bound; `find -delete` removes as many files at the lowest possible
cost; the rule of llm-d's PVC evictor (`discovery`) removes as many. Each gets an identical tree,
built from the same seed. The hit rate of later reads then shows how well each chose.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console

from kvtier.clock import unique_id
from kvtier_bench.evict.pattern import EXPONENT, History, Pattern
from kvtier_bench.evict.tree import FILE_BYTES, FileTree
from kvtier_bench.processes import CommandCost, count_calls, run_measured
from kvtier_bench.progress import Steps
from kvtier_bench.rows import Row, Target, describe, measured, report, write_report

FILES: Final = 100_000
KVTIER, FIND, DISCOVERY = "kvtier evict", "find -delete", "discovery order"
_HIGH, _LOW = 0.7, 0.6
"""The watermarks as shares of the size of all files."""
_NEWEST_AGE_S: Final = 10.0
"""The age of the last reads, which is within the grace period."""
_TRACED_OF: Final = 10
"""Tracing is slow, so system calls are counted on a tree that is smaller by this factor."""
_VERIFIED: Final = 1000
_NO_MORE: Final = Target("<=", 1)
_NO_LESS: Final = Target(">=", 1)
_NONE: Final = Target("<=", 0)


class EvictionResult(NamedTuple):
    """The cost of one contestant, and the files that it left."""

    cost: CommandCost
    left: npt.NDArray[np.bool_]
    hit_rate: float
    calls: float | None
    """System calls for each removed file; None without strace."""

    @property
    def removed(self) -> int:
        """The number of removed files."""
        return int((~self.left).sum())


class _Contest(NamedTuple):
    """The size and the seed of the tree, and the folder it is built in."""

    scratch: Path
    files: int
    seed: int


def run(
    json_path: Path | None,
    scratch: Path,
    console: Console,
    *,
    files: int = FILES,
    seed: int = 1,
) -> list[Row]:
    """Measure and verify, print the rows and write the report.

    Needs 8 KiB and an inode in `scratch` and about 0.6 ms for each file. Leaves `scratch` empty.
    """
    folder = scratch / f"evict-{unique_id()[:12]}"
    folder.mkdir(parents=True, mode=0o700)
    try:
        results, checks = _measure(_Contest(folder, files, seed), Steps(console, 6))
    finally:
        shutil.rmtree(folder)
    rows = [*compare(results), *checks]
    for row in rows:
        console.print(describe(row))
    if json_path is not None:
        details = {
            "files": files,
            "seed": seed,
            "zipf_exponent": EXPONENT,
            **{
                name: {
                    "seconds": round(result.cost.seconds, 2),
                    "cpu_s": round(result.cost.cpu_s, 2),
                    "peak_bytes": result.cost.peak_bytes,
                    "removed": result.removed,
                    "hit_rate": result.hit_rate,
                    "calls_per_removed": result.calls,
                }
                for name, result in results.items()
            },
        }
        write_report(json_path, report("evict", rows, details))
    return rows


def _measure(contest: _Contest, steps: Steps) -> tuple[dict[str, EvictionResult], list[Row]]:
    small = contest._replace(files=max(1000, contest.files // _TRACED_OF))
    results: dict[str, EvictionResult] = {}
    checks: list[Row] = []
    wanted = traced_wanted = 0
    for name in (KVTIER, FIND, DISCOVERY):
        with steps.step(f"{name}: system calls of {small.files} files"):
            tree, _, _ = _build(small, steps)
            calls = count_calls(_command(name, tree, traced_wanted), contest.scratch)
            traced = int((~tree.left()).sum())
            traced_wanted = traced_wanted or traced
            shutil.rmtree(tree.root)
        with steps.step(f"{name}: {contest.files} files"):
            tree, pattern, history = _build(contest, steps)
            cost = run_measured(_command(name, tree, wanted), contest.scratch / "out")
            left = tree.left()
            reads = pattern.draw(contest.files)
            per_file = None if calls is None else calls / max(1, traced)
            results[name] = EvictionResult(cost, left, float(left[reads].mean()), per_file)
            wanted = wanted or results[name].removed
            if name == KVTIER:
                checks = _check_kvtier(tree, results[name], history)
            shutil.rmtree(tree.root)
    best = np.ones(contest.files, np.bool_)
    best[pattern.by_popularity[contest.files - wanted :]] = False
    ideal = measured(
        "hit rate left, against knowing how often each will be read",
        results[KVTIER].hit_rate,
        "of reads",
        reference=float(best[reads].mean()),
    )
    return results, [ideal, *checks]


def _build(contest: _Contest, steps: Steps) -> tuple[FileTree, Pattern, History]:
    """Build the tree, which depends on the seed and the number of files only."""
    pattern = Pattern(contest.files, contest.seed)
    history = pattern.history(_NEWEST_AGE_S)
    tree = FileTree(contest.scratch / "tree", contest.files)
    tree.root.mkdir(mode=0o700)
    tree.build(history, lambda done: steps.tell(f"{done} files written"))
    return tree, pattern, history


def _command(name: str, tree: FileTree, files: int) -> Sequence[str]:
    """Return the command of a contestant that is to remove `files` files."""
    if name == KVTIER:
        size = tree.files * FILE_BYTES
        bounds = ["--high", f"{int(size * _HIGH)}B", "--low", f"{int(size * _LOW)}B"]
        start = [sys.executable, "-c", "from kvtier.cli.main import main; main()"]
        return [*start, "evict", str(tree.root), *bounds, "--once", "--json"]
    if name == FIND:
        folders = [str(folder) for folder in tree.folders(files)]
        return ["find", *folders, "-type", "f", "-delete"]
    return [sys.executable, "-m", "kvtier_bench.evict.discovery", str(tree.blocks), str(files)]


def _check_kvtier(tree: FileTree, result: EvictionResult, history: History) -> list[Row]:
    """Return rows that check the files which kvtier left and those it reports as removed."""
    printed = json.loads(result.cost.output)
    recent = history.windows[-1].files
    staying = np.flatnonzero(result.left)
    chosen = staying[:: max(1, len(staying) // _VERIFIED)]
    return [
        measured(
            "bytes held after the pass, against the high watermark",
            printed["left_bytes"],
            "bytes",
            reference=tree.files * FILE_BYTES * _HIGH,
            target=_NO_MORE,
        ),
        measured(
            "files that were read in the grace period and are gone",
            int((~result.left[recent]).sum()),
            "files",
            target=_NONE,
            note=f"of {len(recent)}",
        ),
        measured(
            "files removed and not told of, or told of and there",
            abs(printed["freed_files"] - result.removed),
            "files",
            target=_NONE,
            note=f"of {result.removed}; {tree.files} files in all",
        ),
        measured(
            "files left that do not verify",
            tree.damaged(chosen),
            "files",
            target=_NONE,
            note=f"of {len(chosen)} checked",
        ),
    ]


def compare(results: dict[str, EvictionResult]) -> list[Row]:
    """Return rows that compare kvtier with each other contestant.

    Only the hit rate has a target. Cost has none, because `find` inspects only what it removes, and
    because emptying whole folders is cheaper than removing the coldest files of each.
    """
    own = results[KVTIER]
    rows = []
    for name in (FIND, DISCOVERY):
        other = results[name]
        for what, unit, value, reference in (
            ("time", "s", own.cost.seconds, other.cost.seconds),
            ("CPU", "s", own.cost.cpu_s, other.cost.cpu_s),
            ("peak memory", "MB", own.cost.peak_bytes / 1e6, other.cost.peak_bytes / 1e6),
            ("system calls for each file removed", "calls", own.calls, other.calls),
        ):
            if value is not None and reference is not None:
                rows.append(measured(f"{what}, against {name}", value, unit, reference=reference))
        rows.append(
            measured(
                f"hit rate left, against {name}",
                own.hit_rate,
                "of reads",
                reference=other.hit_rate,
                target=_NO_LESS,
                note=f"{own.removed} files removed, {other.removed} by {name}",
            )
        )
    return rows
