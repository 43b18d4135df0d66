"""All cells of the fault matrix, as rows of a report and as a table.

A row's value is the number of violations: wrong bytes, hangs, exceptions, and known blocks above
the bound. The row is met at zero, and only if its fault did strike.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from kvtier.clock import perf_s, unique_id
from kvtier.tiers.objectstore.store import BucketStore
from kvtier.tiers.shared.store import Store
from kvtier_bench.faults.cell import VERBS, run_cell
from kvtier_bench.faults.core import run_core
from kvtier_bench.faults.faults import FaultKind, Faults
from kvtier_bench.faults.places import FaultPlace, FolderPlace, ObjectPlace
from kvtier_bench.faults.tally import Tally
from kvtier_bench.progress import Steps
from kvtier_bench.rows import Row, report, write_report

OPERATIONS: Final = 120_000
_CORE_SHARE: Final = 0.25
_BUCKET_OPERATIONS: Final = 60
"""Operations of one cell on a real server, where each takes milliseconds."""

Open = Callable[[Faults], FaultPlace]


class FaultRow(Row, frozen=True, kw_only=True):
    """A row named tier/verb/fault, whose value is the sum of all violations."""

    operations: int
    wrong_bytes: int
    hangs: int
    exceptions: int
    over_bound: int
    faults: int
    """How often the fault struck."""
    outcomes: dict[str, int]
    """The number of blocks for each outcome, and other counts by name."""


class _Cell(NamedTuple):
    name: str
    fault: FaultKind
    open: Open
    perform: Callable[[FaultPlace], Tally]


def run(
    json_path: Path | None,
    scratch: Path,
    console: Console,
    *,
    seed: int = 1,
    operations: int = OPERATIONS,
    bucket: str | None = None,
) -> list[FaultRow]:
    """Run every cell, print the table and write the report; about a millisecond per operation.

    `bucket` is the URL of a bucket for a smaller run on a real server, whose credentials and
    endpoint are in the environment. Raises InvalidSettings if it cannot be used.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    began_s = perf_s()
    rows: list[FaultRow] = []
    cells = list(_cells(scratch, operations))
    store = _open_bucket(bucket) if bucket else None
    if store is not None:
        cells += _bucket_cells(store)
    steps = Steps(console, len({_title(cell) for cell in cells}))
    for title in dict.fromkeys(map(_title, cells)):
        with steps.step(title):
            for number, cell in enumerate(cells):
                if _title(cell) == title:
                    steps.tell(cell.name)
                    rows.append(run_one(cell, 1000 * seed + number))
    if store is not None:
        store.close()
    console.print(fault_table(rows))
    console.print(verdict(rows))
    if json_path is not None:
        details = {"seed": seed, "seconds": round(perf_s() - began_s, 1), **_totals(rows)}
        write_report(json_path, report("faults", rows, details))
    return rows


def run_one(cell: _Cell, seed: int) -> FaultRow:
    """Run one cell and return its row."""
    faults = Faults(seed)
    place = cell.open(faults)
    try:
        tally = cell.perform(place)
    finally:
        faults.disarm()
        place.clean()
    return row(cell.name, tally, faults.happened)


def row(name: str, tally: Tally, happened: int) -> FaultRow:
    """Return the row of a cell whose fault struck `happened` times."""
    bad = tally.wrong_bytes + tally.hangs + tally.exceptions + tally.over_bound
    return FaultRow(
        name=name,
        value=bad,
        unit="violations",
        target="<= 0",
        met=bad == 0 and happened > 0,
        note=tally.first_exception or ("" if happened else "the fault never struck"),
        operations=tally.operations,
        wrong_bytes=tally.wrong_bytes,
        hangs=tally.hangs,
        exceptions=tally.exceptions,
        over_bound=tally.over_bound,
        faults=happened,
        outcomes=dict(sorted((+tally.outcomes).items())),
    )


def fault_table(rows: Sequence[FaultRow]) -> Table:
    """Return a table with a line for each row."""
    table = Table(title="fault matrix", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("tier/verb/fault")
    counts = ("operations", "faults", "wrong_bytes", "hangs", "exceptions", "over_bound")
    for heading in counts:
        table.add_column(heading.replace("_", " "), justify="right")
    table.add_column("outcomes")
    table.add_column("")
    for each in rows:
        outcomes = " ".join(f"{name.lower()} {count}" for name, count in each.outcomes.items())
        numbers = [str(getattr(each, name)) for name in counts]
        table.add_row(each.name, *numbers, outcomes, "met" if each.met else "[red]missed[/red]")
    return table


def verdict(rows: Sequence[FaultRow]) -> str:
    """Return the number of rows and of missed ones, and the sums of all counts, in one line."""
    totals = " ".join(f"{name} {count}" for name, count in _totals(rows).items())
    missed = sum(not each.met for each in rows)
    return f"{len(rows)} rows, {missed} missed: {totals}"


def _totals(rows: Sequence[FaultRow]) -> dict[str, int]:
    names = ("operations", "faults", "wrong_bytes", "hangs", "exceptions", "over_bound")
    return {name: sum(getattr(each, name) for each in rows) for name in names}


def _title(cell: _Cell) -> str:
    return cell.name.rpartition("/")[0]


def _cells(scratch: Path, operations: int) -> Iterator[_Cell]:
    """Yield the cells of folder and objects: the tier's operations, then the whole cache."""
    places: dict[str, Open] = {
        "folder": lambda faults: FolderPlace(scratch, faults),
        "object": lambda faults: ObjectPlace("object", faults),
    }
    on_core = max(1, round(operations * _CORE_SHARE / (len(places) * len(FaultKind))))
    cells = len(places) * len(VERBS) * len(FaultKind)
    on_verb = max(1, -(-(operations - on_core * len(places) * len(FaultKind)) // cells))
    for name, place in places.items():
        yield from _verb_cells(name, place, on_verb)
        for fault in FaultKind:
            perform = partial(run_core, fault=fault, operations=on_core)
            yield _Cell(f"{name}/core/{fault.value}", fault, place, perform)


def _verb_cells(name: str, place: Open, operations: int) -> Iterator[_Cell]:
    for verb in VERBS:
        for fault in FaultKind:
            perform = partial(run_cell, verb=verb, fault=fault, operations=operations)
            yield _Cell(f"{name}/{verb}/{fault.value}", fault, place, perform)


def _open_bucket(url: str) -> BucketStore:
    """Open a new prefix of the bucket, because the cells remove all objects of their store."""
    store = BucketStore(f"{url.rstrip('/')}/faults-{unique_id()[:12]}")
    store.check()
    return store


def _bucket_cells(store: Store) -> Iterator[_Cell]:
    yield from _verb_cells(
        "bucket", lambda faults: ObjectPlace("bucket", faults, store), _BUCKET_OPERATIONS
    )
