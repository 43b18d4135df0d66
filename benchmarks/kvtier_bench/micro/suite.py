"""The suite that runs every micro-benchmark, prints the rows and writes the report."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from kvtier_bench.micro.disk import measure_disk
from kvtier_bench.micro.index import measure_index
from kvtier_bench.micro.ram import measure_arena, measure_ram
from kvtier_bench.micro.shared import measure_shared
from kvtier_bench.rows import Row, describe, report, write_report


def run(json_path: Path | None, scratch: Path, console: Console) -> list[Row]:
    """Return all rows. Takes about three minutes, most of it for the index of 10^7 blocks."""
    rows: list[Row] = []
    parts: list[tuple[str, Callable[[], list[Row]]]] = [
        ("RAM tier", measure_ram),
        ("disk tier", lambda: measure_disk(scratch)),
        ("shared tier", lambda: measure_shared(scratch)),
        ("arena", measure_arena),
        ("index", measure_index),
    ]
    for title, measure in parts:
        console.print(f"[bold]{title}[/bold]")
        for row in measure():
            rows.append(row)
            console.print(describe(row))
        if json_path is not None:
            write_report(json_path, report("micro", rows))
    return rows
