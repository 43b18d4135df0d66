"""`kvtier route` compared with `vllm-router`: CPU per request, latency, and many idle streams.

The router under load has one core. Rounds are interleaved, so that a busy machine affects all
routers alike. CPU time is that of a router's whole process tree.
"""

import contextlib
import resource
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from kvtier.clock import MonotonicClock
from kvtier_bench.progress import Steps
from kvtier_bench.router import contest
from kvtier_bench.router.contest import LoadProcess, RunningRouter
from kvtier_bench.router.load import LoadOrder, LoadOutcome
from kvtier_bench.rows import Row, Target, measured

DIRECT: Final = "direct"
WHOLE: Final = "non-streaming"
CHUNKS: Final = "streaming 64 chunks"
STREAMS: Final = 10_000
_OWN: Final = (contest.ROUND_ROBIN, contest.DEFAULT)
_REPLICAS: Final = 2
_SPARE: Final = 200
"""File descriptors that a router needs besides two for each stream."""
_PRIME_S: Final = 0.5
_APART: Final = 10_000_000
"""The distance between the request numbers of two loads, so that none repeats."""
_STREAM_BYTES: Final = 100_000
_ORDERS: Final = {
    WHOLE: LoadOrder(port=0, kind="whole", clients=16),
    CHUNKS: LoadOrder(port=0, kind="chunks", clients=32),
}
_CPU_TARGETS: Final = {WHOLE: Target("<=", 1.5), CHUNKS: Target("<=", 1)}


class RoundSample(NamedTuple):
    """The load and the CPU time of one contestant in one round."""

    outcome: LoadOutcome
    cpu_s: float


RoundSamples = Mapping[tuple[str, str], Sequence[RoundSample]]
"""Samples by load pattern and contestant, one for each round."""


class IdleStreams(NamedTuple):
    """The outcome of holding many idle streams open through one router."""

    outcome: LoadOutcome
    wanted: int
    grown_bytes: int


def measure_proxying(
    scratch: Path,
    steps: Steps,
    *,
    peer: Path = contest.PEER,
    rounds: int = 5,
    seconds: float = 2.0,
    streams: int = STREAMS,
) -> tuple[list[Row], dict[str, Any]]:
    """Return rows and the details behind them. Logs of the routers stay in `scratch`.

    Takes 2 x contestants x rounds x (seconds + 0.5) seconds, and half a minute for idle streams.
    """
    scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
    commands = contest.contestants(peer, scratch)
    with contest.replicas(_REPLICAS) as ports:
        with (
            steps.step(f"HTTP: {rounds} rounds"),
            contest.routers(commands, ports, scratch) as running,
        ):
            samples = _rounds(running, ports[0], steps, rounds, seconds)
        with steps.step("HTTP: idle streams"):
            idle = _idle(commands, ports, scratch, streams)
    return [*rows(samples), *idle_rows(idle)], _details(samples, idle)


def _rounds(
    running: Sequence[RunningRouter], direct: int, steps: Steps, rounds: int, seconds: float
) -> RoundSamples:
    found: dict[tuple[str, str], list[RoundSample]] = {}
    targets: dict[str, RunningRouter | None] = {DIRECT: None}
    targets.update((router.name, router) for router in running)
    first = 0
    for turn in range(rounds):
        for pattern in _ORDERS:
            for name, router in targets.items():
                steps.tell(f"round {turn + 1} of {rounds}, {pattern}: {name}")
                # Uncounted: reopens connections that were closed while other contestants ran.
                _sample(router, direct, pattern, _PRIME_S, first)
                sample = _sample(router, direct, pattern, seconds, first + _APART)
                found.setdefault((pattern, name), []).append(sample)
                first += 2 * _APART
    return found


def _sample(
    router: RunningRouter | None, direct: int, pattern: str, seconds: float, first: int
) -> RoundSample:
    wanted = _ORDERS[pattern]
    order = LoadOrder(
        port=direct if router is None else router.port,
        kind=wanted.kind,
        clients=wanted.clients,
        seconds=seconds,
        first=first,
    )
    before_s = 0.0 if router is None else router.cpu_s()
    with LoadProcess(order) as load:
        outcome = load.read_outcome()
    return RoundSample(outcome, 0.0 if router is None else router.cpu_s() - before_s)


def _idle(
    commands: Mapping[str, Sequence[str]], ports: Sequence[int], scratch: Path, wanted: int
) -> dict[str, IdleStreams]:
    """Measure each router in a new process, since memory left by the rounds would hide growth."""
    found = {}
    for name in (contest.DEFAULT, contest.PEER_CACHE_AWARE):
        if name not in commands:
            continue
        with contest.routers({name: commands[name]}, ports, scratch) as running:
            for router in running:
                _sample(router, 0, WHOLE, _PRIME_S, 0)
                found[name] = _hold(router, _allowed(router.process, wanted))
    return found


def _allowed(process: subprocess.Popen[bytes], wanted: int) -> int:
    """Raise the limit of open files, and return how many streams, of two files each, it allows."""
    needed = 2 * wanted + _SPARE
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    with contextlib.suppress(PermissionError):  # beyond the hard limit only root may
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (needed, max(needed, hard)))
        return wanted
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (hard, hard))
    return (hard - _SPARE) // 2


def _hold(router: RunningRouter, streams: int) -> IdleStreams:
    before = router.resident_bytes()
    with LoadProcess(LoadOrder(port=router.port, kind="idle", clients=streams)) as load:
        load.read_outcome()
        MonotonicClock().sleep(2)
        grown = router.resident_bytes() - before
        load.end_streams()
        return IdleStreams(load.read_outcome(), streams, grown)


# -- rows ----------------------------------------------------------------------------------


def rows(samples: RoundSamples) -> list[Row]:
    """Return CPU, latency and errors of all contestants.

    The CPU target of kvtier is relative to the peer's `cache_aware`.
    """
    found = []
    for pattern in _ORDERS:
        names = [name for one, name in samples if one == pattern and name != DIRECT]
        peer_us = _cpu_us(samples.get((pattern, contest.PEER_CACHE_AWARE), ()))
        for name in names:
            taken = samples[pattern, name]
            ours = name in _OWN
            each = [sample.cpu_s / max(1, sample.outcome.requests) * 1e6 for sample in taken]
            found.append(
                measured(
                    f"{name}, {pattern}: CPU a request",
                    _cpu_us(taken),
                    "us",
                    reference=peer_us if ours and peer_us else None,
                    target=_CPU_TARGETS[pattern] if ours and peer_us else None,
                    note=f"{min(each):.0f} to {max(each):.0f}"
                    + ("; against vllm-router, cache_aware" if ours and peer_us else ""),
                )
            )
        found += [_added(samples, pattern, name) for name in names]
    return [*found, *_wrong(samples)]


def _added(samples: RoundSamples, pattern: str, name: str) -> Row:
    """Return the latency that a router adds to direct requests of the same round, as a median."""
    pairs = zip(samples[pattern, name], samples[pattern, DIRECT], strict=True)
    added = [(one.outcome.p50_s - direct.outcome.p50_s) * 1e3 for one, direct in pairs]
    judged = pattern == CHUNKS and name in _OWN
    outcomes = [sample.outcome for sample in samples[pattern, name]]
    p50 = statistics.median(one.p50_s for one in outcomes) * 1e3
    p99 = statistics.median(one.p99_s for one in outcomes) * 1e3
    rate = statistics.median(one.requests / one.seconds for one in outcomes)
    return measured(
        f"{name}, {pattern}: added p50",
        statistics.median(added),
        "ms",
        target=Target("<=", 1) if judged else None,
        note=f"{min(added):.2f} to {max(added):.2f}; p50 {p50:.2f} ms, p99 {p99:.2f} ms, "
        f"{rate:.0f} requests/s",
    )


def _wrong(samples: RoundSamples) -> list[Row]:
    """Return the failed and wrong answers of every contestant: speed counts only without them."""
    found = []
    for name in dict.fromkeys(name for _, name in samples):
        taken = [samples[key] for key in samples if key[1] == name]
        outcomes = [sample.outcome for each in taken for sample in each]
        complaint = next((one.complaint for one in outcomes if one.complaint), "")
        found.append(
            measured(
                f"{name}: answers that failed, or differed by a byte",
                sum(one.wrong + one.failed for one in outcomes),
                "answers",
                target=Target("<=", 0) if name in _OWN else None,
                note=f"of {sum(one.requests for one in outcomes)}, all compared; {complaint}",
            )
        )
    return found


def idle_rows(idle: Mapping[str, IdleStreams]) -> list[Row]:
    """Return the errors of idle streams and the memory for each stream."""
    found = []
    for name, one in idle.items():
        ours = name == contest.DEFAULT
        lost = one.wanted - one.outcome.requests + one.outcome.wrong + one.outcome.failed
        found.append(
            measured(
                f"{name}, {one.wanted} idle streams: errors",
                lost,
                "streams",
                target=Target("<=", 0) if ours else None,
                note=one.outcome.complaint,
            )
        )
        found.append(
            measured(
                f"{name}, {one.wanted} idle streams: memory a stream",
                one.grown_bytes / max(1, one.outcome.requests),
                "bytes",
                target=Target("<=", _STREAM_BYTES) if ours else None,
                note=f"{one.grown_bytes / 1e6:.0f} MB more resident than without",
            )
        )
    return found


def _cpu_us(taken: Sequence[RoundSample]) -> float:
    each = [sample.cpu_s / max(1, sample.outcome.requests) for sample in taken]
    return statistics.median(each) * 1e6 if each else 0.0


def _details(samples: RoundSamples, idle: Mapping[str, IdleStreams]) -> dict[str, Any]:
    return {
        "rounds": {
            f"{name}, {pattern}": [
                {"cpu_s": sample.cpu_s, "outcome": sample.outcome} for sample in taken
            ]
            for (pattern, name), taken in samples.items()
        },
        "idle": {name: one._asdict() for name, one in idle.items()},
    }
