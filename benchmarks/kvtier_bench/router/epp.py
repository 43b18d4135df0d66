"""The endpoint picker behind a real Envoy: the CPU that closing streams early saves, and latency.

Five setups take turns on one machine: Envoy without the picker; the picker closing its stream after
the choice; the same with buffered bodies; the same although Envoy would also show it the answer;
and the picker observing every chunk of the answer. CPU seconds come from /proc. Requests and checks
are those of `load`. Run it alone as `python -m kvtier_bench.router.epp ENVOY`.
"""

import asyncio
import contextlib
import math
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from kvtier.clock import MonotonicClock, perf_s
from kvtier.router.epp.envoy import Address, EnvoySettings, bootstrap
from kvtier_bench.processes import read_stat
from kvtier_bench.router import answers, load
from kvtier_bench.router.replica import run_in_loop
from kvtier_bench.rows import Row, Target, measured

CLIENTS: Final = 32
RATE: Final = 300
"""Requests per second while the added latency is measured."""
PATIENCE_S: Final = 20.0
_KVTIER: Final = (sys.executable, "-c", "from kvtier.cli.main import main; main()")


class PickerSetup(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration of Envoy and the picker."""

    name: str
    has_picker: bool = True
    is_buffered: bool = False
    shows_responses: bool = False
    """Whether Envoy offers answers to the picker, in full-duplex mode."""
    is_observed: bool = False
    """Whether the picker keeps its streams open to observe answers."""


ALONE: Final = PickerSetup(name="Envoy alone", has_picker=False)
CLOSING: Final = PickerSetup(name="closed after the choice")
BUFFERED: Final = PickerSetup(name="closed, bodies buffered", is_buffered=True)
CLOSING_DUPLEX: Final = PickerSetup(
    name="full duplex both ways, closed after the choice", shows_responses=True
)
DUPLEX: Final = PickerSetup(name="full duplex", shows_responses=True, is_observed=True)
SETUPS: Final = (ALONE, CLOSING, BUFFERED, CLOSING_DUPLEX, DUPLEX)


class PickerCost(msgspec.Struct, frozen=True, kw_only=True):
    """The measurements of one run."""

    picker_us: float
    """CPU microseconds of the picker for each request."""
    envoy_us: float
    """CPU microseconds of Envoy for each request."""
    p50_s: float
    requests: int
    wrong: int


class RunningSetup:
    """One setup, running. Its processes end with the stack that it was made with."""

    def __init__(
        self, setup: PickerSetup, stack: contextlib.ExitStack, envoy: str, replica: int
    ) -> None:
        self.setup = setup
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._stack = stack
        ports = _free_ports(5)
        self.port, self._picker_port = ports[0], ports[1]
        self._replica = Address("127.0.0.1", replica)
        self._picker = self._start_picker(ports[2:4]) if setup.has_picker else None
        self._envoy = self._start_envoy(envoy, ports[4])

    def run(self, first: int, seconds: float) -> PickerCost:
        """`CLIENTS` clients, each with a stream of 64 chunks at a time."""
        order = load.LoadOrder(
            port=self.port, kind="chunks", clients=CLIENTS, seconds=seconds, first=first
        )
        before = self._cpu()
        command = [sys.executable, "-m", "kvtier_bench.router.load"]
        done = subprocess.run(
            command, input=msgspec.json.encode(order) + b"\n", capture_output=True, check=True
        )
        after = self._cpu()
        outcome = msgspec.json.decode(done.stdout.splitlines()[-1], type=load.LoadOutcome)
        count = max(1, outcome.requests)
        picker, envoy = ((b - a) / count * 1e6 for a, b in zip(before, after, strict=True))
        return PickerCost(
            picker_us=picker,
            envoy_us=envoy,
            p50_s=outcome.p50_s,
            requests=outcome.requests,
            wrong=outcome.wrong + outcome.failed,
        )

    def _cpu(self) -> tuple[float, float]:
        found = []
        for process in (self._picker, self._envoy):
            stat = read_stat(process.pid) if process is not None else None
            found.append(stat.cpu_s if stat is not None else 0.0)
        return found[0], found[1]

    def _start_picker(self, ports: Sequence[int]) -> subprocess.Popen[bytes]:
        command = [*_KVTIER, "epp", "--insecure", "--drain", "0s"]
        command += ["--endpoint", f"http://{self._replica.host}:{self._replica.port}"]
        command += ["--grpc-port", str(self._picker_port), "--grpc-health-port", str(ports[0])]
        command += ["--metrics-port", str(ports[1])]
        if self.setup.is_observed:
            command.append("--observe-responses")
        return self._start("picker", command, lambda text: "listening on" in text)

    def _start_envoy(self, envoy: str, admin: int) -> subprocess.Popen[bytes]:
        wishes = EnvoySettings(
            listen=Address("127.0.0.1", self.port),
            picker=Address("127.0.0.1", self._picker_port),
            replicas=[self._replica],
            admin=Address("127.0.0.1", admin),
            is_secure=False,
            is_buffered=self.setup.is_buffered,
            shows_responses=self.setup.shows_responses,
        )
        config = bootstrap(wishes)
        if not self.setup.has_picker:
            _without_picker(config)
        path = self._folder / "envoy.yaml"
        path.write_text(yaml.safe_dump(config))
        command = [envoy, "-c", str(path), "--disable-hot-restart", "--concurrency", "1"]
        process = self._start("envoy", command, lambda text: "starting main dispatch loop" in text)
        # Until its health checks of the picker have passed, Envoy fails open.
        MonotonicClock().sleep(1.5)
        return process

    def _start(
        self, name: str, command: Sequence[str], is_up: Callable[[str], bool]
    ) -> subprocess.Popen[bytes]:
        log = self._folder / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out)
        self._stack.callback(_stop, process)
        end_s = perf_s() + PATIENCE_S
        while not is_up(text := log.read_text(errors="replace")):
            if process.poll() is not None or perf_s() > end_s:
                raise RuntimeError(f"{name} did not start:\n{text[-2000:]}")
            MonotonicClock().sleep(0.05)
        return process


async def pace(port: int, per_second: int, seconds: float) -> list[float]:
    """Send `per_second` requests a second, each when it is due, and return their latencies."""
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    took: list[float] = []

    async def one(number: int) -> None:
        due_s = start_s + number / per_second
        await asyncio.sleep(max(0.0, due_s - perf_s()))
        reader, writer = free.pop() if free else await asyncio.open_connection("127.0.0.1", port)
        writer.write(answers.make_request(number))
        answer = load.AnswerParser()
        while not answer.done:
            answer.feed(await reader.read(1 << 16))
        took.append(perf_s() - due_s)
        if answer.status != 200:
            raise RuntimeError(f"request {number} was answered with {answer.status}")
        free.append((reader, writer))

    start_s = perf_s() + 0.05
    await asyncio.gather(*(one(number) for number in range(int(per_second * seconds))))
    for _, writer in free:
        writer.close()
    return took


def measure_epp(envoy: str, rounds: int = 3, seconds: float = 2.0) -> list[Row]:
    """All rows; `rounds * seconds` for each of five ways, and twice as much for latencies."""
    costs: dict[PickerSetup, list[PickerCost]] = {setup: [] for setup in SETUPS}
    tails: dict[PickerSetup, list[float]] = {ALONE: [], CLOSING: []}
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(_replica())
        settings = [RunningSetup(setup, stack, envoy, port) for setup in SETUPS]
        for number in range(rounds + 1):
            for setting in settings:
                cost = setting.run(number * 1_000_000, seconds if number else 0.5)
                if number:  # the first warms up
                    costs[setting.setup].append(cost)
            for setting in settings:
                if number and setting.setup in tails:
                    took = run_in_loop(pace(setting.port, RATE, seconds))
                    tails[setting.setup].append(_quantile(took, 0.99))
    return [*_cpu_rows(costs), *_tail_rows(tails)]


def _cpu_rows(costs: dict[PickerSetup, list[PickerCost]]) -> Iterator[Row]:
    def median(setup: PickerSetup, field: str) -> float:
        found: float = statistics.median(getattr(cost, field) for cost in costs[setup])
        return found

    for setup in SETUPS:
        spread = [round(cost.picker_us) for cost in costs[setup]]
        wrong = sum(cost.wrong for cost in costs[setup])
        note = f"runs {spread}; wrong answers {wrong}; p50 {median(setup, 'p50_s') * 1e3:.0f} ms"
        duplex = None if setup in (ALONE, DUPLEX) else median(DUPLEX, "picker_us")
        target = Target("<=", 0.2) if setup in (CLOSING, CLOSING_DUPLEX) else None
        if setup.has_picker:
            yield measured(
                f"picker, 64 chunks, {setup.name}",
                median(setup, "picker_us"),
                "us of CPU a request",
                reference=duplex,
                target=target,
                note=note,
            )
        yield measured(
            f"Envoy, 64 chunks, {setup.name}",
            median(setup, "envoy_us"),
            "us of CPU a request",
            reference=None if setup is ALONE else median(ALONE, "envoy_us"),
            note=note,
        )


def _tail_rows(tails: dict[PickerSetup, list[float]]) -> Iterator[Row]:
    alone, closing = (statistics.median(tails[setup]) for setup in (ALONE, CLOSING))
    runs = {setup.name: [round(value * 1e3, 2) for value in tails[setup]] for setup in tails}
    yield measured(
        f"p99 added by the picker at {RATE} requests/s",
        (closing - alone) * 1e3,
        "ms",
        target=Target("<=", 5.0),
        note=f"p99 of each run in ms: {runs}",
    )


def _without_picker(config: dict[str, Any]) -> None:
    resources = config["static_resources"]
    (chain,) = resources["listeners"][0]["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    manager["http_filters"] = manager["http_filters"][1:]
    resources["clusters"] = resources["clusters"][:1]


@contextlib.contextmanager
def _replica() -> Iterator[int]:
    command = [sys.executable, "-m", "kvtier_bench.router.replica", "1", "--chunked"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
            process.wait(PATIENCE_S)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


if __name__ == "__main__":
    print(msgspec.json.format(msgspec.json.encode(measure_epp(sys.argv[1]))).decode())
