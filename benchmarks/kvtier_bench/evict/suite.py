"""Three ways to make room in a tree of many small files, one after another.

kvtier brings the tree under its bound; `find -delete` removes as many files, which is the least
that it can cost; the rule of llm-d's PVC evictor (`discovery`) removes as many. Each has a tree
of its own, built from the same seed. Then the same readers go on reading: whom do they miss?
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
"""Of what the files take up together."""
_NEWEST_AGE_S: Final = 10.0
"""Of the last reads: within the grace period."""
_TRACED_OF: Final = 10
"""System calls are counted on a tree so much smaller: tracing is slow."""
_VERIFIED: Final = 1000
_NO_MORE: Final = Target("<=", 1)
_NO_LESS: Final = Target(">=", 1)
_NONE: Final = Target("<=", 0)


class EvictionResult(NamedTuple):
    """Of one contestant."""

    cost: CommandCost
    left: npt.NDArray[np.bool_]
    hit_rate: float
    calls: float | None
    """System calls for each file that it removed."""

    @property
    def removed(self) -> int:
        """Files."""
        return int((~self.left).sum())


class _Contest(NamedTuple):
    """Who runs on what."""

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
    """Measure, verify, print and write the report.

    Needs 8 KiB and an inode of `scratch` for each file; leaves nothing there. About 0.6 ms of
    time for each file.
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
    """The tree that a seed and a number of files make; it is the same each time."""
    pattern = Pattern(contest.files, contest.seed)
    history = pattern.history(_NEWEST_AGE_S)
    tree = FileTree(contest.scratch / "tree", contest.files)
    tree.root.mkdir(mode=0o700)
    tree.build(history, lambda done: steps.tell(f"{done} files written"))
    return tree, pattern, history


def _command(name: str, tree: FileTree, files: int) -> Sequence[str]:
    """What a contestant is started with. `files`: how many it removes."""
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
    """That what should be there is there."""
    told = json.loads(result.cost.output)
    recent = history.windows[-1].files
    staying = np.flatnonzero(result.left)
    chosen = staying[:: max(1, len(staying) // _VERIFIED)]
    return [
        measured(
            "bytes held after the pass, against the high watermark",
            told["left_bytes"],
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
            abs(told["freed_files"] - result.removed),
            "files",
            target=_NONE,
            note=f"of {result.removed}; {tree.files} files in all",
        ),
        measured(
            "files left that do not verify",
            tree.damaged(chosen),
            "files",
            target=_NONE,
            note=f"of {len(chosen)} looked at",
        ),
    ]


def compare(results: dict[str, EvictionResult]) -> list[Row]:
    """kvtier against each of the others.

    Only what is left is judged, not what it costs: `find` looks at nothing that it does not
    remove, so it is the floor; whole folders are cheaper to empty than the coldest of each.
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
