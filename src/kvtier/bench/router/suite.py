"""`kvtier bench router`: the router's parts, one after another, into one report.

Parts are chosen by name, so that the one that has changed can be measured alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from kvtier.bench.progress import Steps
from kvtier.bench.router.contest import PEER
from kvtier.bench.router.epp import measure_epp
from kvtier.bench.router.index import measure_router_index
from kvtier.bench.router.proxying import STREAMS, measure_proxying
from kvtier.bench.router.sim import measure_sim
from kvtier.bench.rows import Row, report, write_report

HTTP, EPP, INDEX, SIM = "http", "epp", "index", "sim"
PARTS: Final = (HTTP, EPP, INDEX, SIM)
ENVOY: Final = Path("build/envoy/bin/envoy")
_STEPS: Final = {HTTP: 2, EPP: 1, INDEX: 1, SIM: 1}


def run(
    json_path: Path | None,
    scratch: Path,
    console: Console,
    *,
    parts: Sequence[str] = PARTS,
    examples: Path,
    peer: Path = PEER,
    envoy: Path = ENVOY,
    rounds: int = 5,
    seed: int = 1,
    streams: int = STREAMS,
) -> list[Row]:
    """Measure, print and write the report after each part, so that a run cut off keeps some.

    `examples` holds configurations for the simulation, `scratch` takes the routers' logs.
    """
    steps = Steps(console, sum(_STEPS[part] for part in parts))
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for part in parts:
        if part == HTTP:
            found, details[part] = measure_proxying(
                scratch, steps, peer=peer, rounds=rounds, streams=streams
            )
        elif part == EPP and not envoy.exists():
            with steps.step(f"the picker is left out: there is no {envoy}"):
                found = []
        elif part == EPP:
            with steps.step("the picker behind Envoy"):
                found = measure_epp(str(envoy), rounds=rounds)
        elif part == INDEX:
            with steps.step("the fleet's indexes"):
                found = measure_router_index()
        else:
            found, details[part], table = measure_sim(examples, steps, seed=seed)
            console.print(table)
        rows += found
        if json_path is not None:
            write_report(json_path, report("router", rows, details))
    for row in rows:
        mark = {True: "[green]met[/]    ", False: "[red]missed[/] ", None: "       "}[row.met]
        ratio = "" if row.ratio is None else f", {row.ratio:.2f} of it"
        console.print(f"{mark} {row.name}: {row.value:.4g} {row.unit}{ratio} [dim]{row.note}[/]")
    return rows
