"""The suite behind `python -m kvtier_bench router`: its parts, one after another, in one report.

Parts are selected by name, so that a changed one can be measured alone. A part whose requirement
(Envoy, an engine, a model) is missing is skipped with a message.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console

from kvtier_bench.progress import Steps
from kvtier_bench.router import engines
from kvtier_bench.router.contest import PEER
from kvtier_bench.router.epp import measure_epp
from kvtier_bench.router.index import measure_router_index
from kvtier_bench.router.proxying import STREAMS, measure_proxying
from kvtier_bench.router.sim import measure_sim
from kvtier_bench.router.traffic import Traffic
from kvtier_bench.rows import Row, describe, report, write_report
from kvtier_bench.workload import model_decoder, model_encoder, read_as

HTTP, EPP, INDEX, SIM, ENGINES = "http", "epp", "index", "sim", "engines"
PARTS: Final = (HTTP, EPP, INDEX, SIM, ENGINES)
ENVOY: Final = Path("build/envoy/bin/envoy")
MODEL: Final = Path(".models/smollm2-135m")
TRAFFIC: Final = Path("benchmarks/workloads/replicas.yaml")


class RouterSetting(msgspec.Struct, frozen=True, kw_only=True):
    """The paths of programs and files, and the amount of measuring."""

    scratch: Path
    """The folder for the logs of routers and engines."""
    examples: Path
    """The folder of the router configurations for the simulation and for real replicas."""
    peer: Path = PEER
    envoy: Path = ENVOY
    model: Path = MODEL
    traffic: Path = TRAFFIC
    rounds: int = 5
    seed: int = 1
    streams: int = STREAMS


Found = tuple[list[Row], Any]
"""The rows of a part and the details behind them."""
Keep = Callable[[Found], None]


def run(
    json_path: Path | None,
    setting: RouterSetting,
    console: Console,
    *,
    parts: Sequence[str] = PARTS,
) -> list[Row]:
    """Measure the parts, print their rows, and write the report anew after each part."""
    steps = Steps(console, sum(_STEPS[part](setting) for part in parts))
    measured = _Measured(json_path)
    for part in parts:
        measured.keep(part, _MEASURE[part](setting, steps, partial(measured.keep, part)))
    for row in measured.rows:
        console.print(describe(row))
    return measured.rows


class _Measured:
    """The rows and details so far, written to the report after every `keep`."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._parts: dict[str, Found] = {}

    def keep(self, part: str, found: Found) -> None:
        """Replace the rows and details of a part, and write the report."""
        self._parts[part] = found
        if self._path is not None:
            details = {name: each for name, (_, each) in self._parts.items() if each is not None}
            write_report(self._path, report("router", self.rows, details))

    @property
    def rows(self) -> list[Row]:
        """The rows of all parts, in the order of the parts."""
        return [row for rows, _ in self._parts.values() for row in rows]


def _http(setting: RouterSetting, steps: Steps, keep: Keep) -> Found:
    return measure_proxying(
        setting.scratch,
        steps,
        peer=setting.peer,
        rounds=setting.rounds,
        streams=setting.streams,
    )


def _epp(setting: RouterSetting, steps: Steps, keep: Keep) -> Found:
    if not setting.envoy.exists():
        return _skip(steps, "the picker", f"there is no {setting.envoy}")
    with steps.step("the picker behind Envoy"):
        return measure_epp(str(setting.envoy), rounds=setting.rounds), None


def _index(setting: RouterSetting, steps: Steps, keep: Keep) -> Found:
    with steps.step("the fleet's indexes"):
        return measure_router_index(), None


def _sim(setting: RouterSetting, steps: Steps, keep: Keep) -> Found:
    rows, details, table = measure_sim(setting.examples, steps, seed=setting.seed)
    steps.console.print(table)
    return rows, details


def _engines(setting: RouterSetting, steps: Steps, keep: Keep) -> Found:
    if not setting.model.exists():
        return _skip(steps, "real replicas", f"there is no {setting.model}")
    if importlib.util.find_spec("vllm") is None:
        return _skip(steps, "real replicas", "vLLM is not installed")
    plan = engines.RouterPlan(
        model=setting.model,
        traffic=read_as(Traffic, setting.traffic),
        rounds=setting.rounds,
        seed=setting.seed,
        scratch=setting.scratch,
        examples=setting.examples,
        peer=setting.peer,
    )
    encode, decode = model_encoder(setting.model), model_decoder(setting.model)
    return engines.measure_engines(plan, encode, decode, steps, keep)


def _skip(steps: Steps, what: str, why: str) -> Found:
    with steps.step(f"{what}: skipped, {why}"):
        return [], None


_MEASURE: Final[Mapping[str, Callable[[RouterSetting, Steps, Keep], Found]]] = {
    HTTP: _http,
    EPP: _epp,
    INDEX: _index,
    SIM: _sim,
    ENGINES: _engines,
}
_STEPS: Final[Mapping[str, Callable[[RouterSetting], int]]] = {
    HTTP: lambda setting: 2,
    EPP: lambda setting: 1,
    INDEX: lambda setting: 1,
    SIM: lambda setting: 1,
    ENGINES: lambda setting: engines.STEPS + setting.rounds,
}
