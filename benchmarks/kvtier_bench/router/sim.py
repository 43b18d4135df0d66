"""A simulation of 64 replicas in virtual time, in which every routing profile makes real decisions.

Every profile gets the same sessions; its indexes, scorers and pickers are those of production. A
session sends its next turn only after the last was answered, so a profile that serves faster gets
requests sooner. The profiles are the files of `examples/router` and the routing strategies, all
with estimated indexes, as for replicas that publish no events. The same seed gives the same
numbers.
"""

import heapq
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.table import Table

from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.estimated import EstimatedIndex, compared
from kvtier.index.fleet.prompt import TokenPrompt
from kvtier.router.choose.base import Endpoint, InferenceRequest
from kvtier.router.choose.profile import Profile
from kvtier.router.config import indexes
from kvtier.router.config.profiles import build_profiles, build_strategies
from kvtier.router.config.reading import Configuration, read_configuration
from kvtier_bench.progress import Steps
from kvtier_bench.router.sim_replica import Job, Rates, SimulatedReplica, Started
from kvtier_bench.router.sim_trace import SegmentTokens, SimulatedSession, TraceShape, make_sessions
from kvtier_bench.rows import Row, Target, measured

REPLICAS: Final = 64
_SCRAPE_S: Final = 0.5
_JUDGED: Final = "expected-ttft"
_MODEL: Final = "m"
_STRATEGIES: Final = (
    "round-robin",
    "random",
    "least-request",
    "power-of-two",
    "session-affinity",
    "prefix-cache",
)
_FILES: Final = {
    "document, 2:2:1:1": "tiered-prefix-cache.yaml",
    "document, active requests": "active-requests.yaml",
    "document, producers": "producers.yaml",
    "document, no-hit-lru 1:1:1:1:1": "no-hit-lru.yaml",
}

Policy = Callable[[Sequence[Endpoint]], Profile]
"""Makes a new profile for these replicas."""


class SimulationResult(NamedTuple):
    """The results of one profile over the whole trace."""

    ttft_s: list[float]
    """Times to first token, sorted."""
    prompt_tokens: int
    device_tokens: int
    """Prompt tokens found on the device."""
    ram_tokens: int
    """Prompt tokens found in RAM and not on the device."""

    @property
    def mean_s(self) -> float:
        """The mean time to first token."""
        return sum(self.ttft_s) / len(self.ttft_s)

    def quantile_s(self, share: float) -> float:
        """Return a quantile of the times to first token."""
        return self.ttft_s[min(len(self.ttft_s) - 1, int(len(self.ttft_s) * share))]


def measure_sim(
    examples: Path,
    steps: Steps,
    *,
    seed: int = 1,
    shape: TraceShape | None = None,
    replicas: int = REPLICAS,
) -> tuple[list[Row], dict[str, Any], Table]:
    """Return rows, details, and a table of all profiles."""
    shape = shape or TraceShape()
    sessions = list(make_sessions(shape, seed))
    tokens = SegmentTokens()
    results: dict[str, SimulationResult] = {}
    with steps.step(f"{replicas} simulated replicas, {len(sessions)} sessions"):
        for name, make in policies(examples).items():
            steps.tell(name)
            results[name] = Simulation(make, sessions, tokens, replicas).run()
    details = {"seed": seed, "replicas": replicas, "shape": shape._asdict()}
    return sim_rows(results), details, table(results)


class Simulation:
    """One run of the trace with one profile."""

    def __init__(
        self,
        make: Policy,
        sessions: Sequence[SimulatedSession],
        tokens: SegmentTokens,
        replicas: int,
        rates: Rates | None = None,
    ) -> None:
        self._replicas = {
            name: SimulatedReplica(name, rates or Rates())
            for name in (f"replica-{number}" for number in range(replicas))
        }
        self._endpoints = [replica.endpoint for replica in self._replicas.values()]
        self._profile = make(self._endpoints)
        self._sessions = sessions
        self._tokens = tokens
        self._headers: list[dict[str, str]] = [{} for _ in sessions]
        self._events: list[tuple[float, int, Any]] = []
        self._order = itertools.count()
        self._left = sum(len(session.turns) for session in sessions)
        self._ttft_s: list[float] = []
        self._prompt_tokens = self._device_tokens = self._ram_tokens = 0

    def run(self) -> SimulationResult:
        """Run until the last session has ended."""
        for session in self._sessions:
            self._at(session.begins_s, self._send, session, 0)
        self._at(0.0, self._scrape)
        while self._left:
            now_s, _, (call, *given) = heapq.heappop(self._events)
            call(now_s, *given)
        return SimulationResult(
            sorted(self._ttft_s), self._prompt_tokens, self._device_tokens, self._ram_tokens
        )

    def _at(self, when_s: float, *call: Any) -> None:
        heapq.heappush(self._events, (when_s, next(self._order), call))

    def _scrape(self, now_s: float) -> None:
        for replica in self._replicas.values():
            replica.report(now_s)
        self._at(now_s + _SCRAPE_S, self._scrape)

    def _send(self, now_s: float, session: SimulatedSession, number: int) -> None:
        turn = session.turns[number]
        request = InferenceRequest(
            request_id=f"{session.number}-{number}",
            model=_MODEL,
            prompt=TokenPrompt(self._tokens.prompt(turn), _MODEL),
            max_tokens=turn.answer_tokens,
            headers=self._headers[session.number],
        )
        decision = self._profile.decide(request, self._endpoints, now_s)
        chosen = decision.chosen[0]
        self._profile.routed(request, decision, chosen)
        endpoint = chosen.endpoint
        told = self._profile.response_headers(request, endpoint)
        self._headers[session.number].update((name.lower(), told[name]) for name in told)
        job = Job(session.number, turn, now_s, decision.missing_tokens(chosen))
        endpoint.in_flight += 1
        endpoint.in_flight_tokens += job.tokens
        assert endpoint.pending_tokens is not None
        endpoint.pending_tokens += job.expected_tokens
        replica = self._replicas[endpoint.name]
        replica.waiting.append(job)
        self._start(now_s, replica, session, number)

    def _start(self, now_s: float, replica: SimulatedReplica, *_: object) -> None:
        started = replica.start(now_s)
        if started is not None:
            self._at(started.first_s, self._first, replica, started)

    def _first(self, now_s: float, replica: SimulatedReplica, started: Started) -> None:
        job = started.job
        self._ttft_s.append(now_s - job.sent_s)
        self._prompt_tokens += job.turn.tokens
        self._device_tokens += started.device_tokens
        self._ram_tokens += started.ram_tokens
        assert replica.endpoint.pending_tokens is not None
        replica.endpoint.pending_tokens -= job.expected_tokens
        replica.prefilling = False
        self._at(started.done_s, self._done, replica, job)
        self._start(now_s, replica)

    def _done(self, now_s: float, replica: SimulatedReplica, job: Job) -> None:
        replica.finish(job)
        replica.endpoint.in_flight -= 1
        replica.endpoint.in_flight_tokens -= job.tokens
        self._left -= 1
        session = self._sessions[job.session]
        # The first turn has two segments, and each later one has one more than the turn before.
        following = len(job.turn.segments) - 1
        if following < len(session.turns):
            self._at(now_s + job.turn.pause_s, self._send, session, following)
        self._start(now_s, replica)


def sim_rows(results: Mapping[str, SimulationResult]) -> list[Row]:
    """Return the rows of each profile; the target of expected-ttft is to beat every other one."""
    others = [result for name, result in results.items() if not name.startswith(_JUDGED)]
    found = []
    for name, result in results.items():
        judged = name == _JUDGED and others
        hits = f"hits: device {result.device_tokens / result.prompt_tokens:.1%}, "
        hits += f"RAM {result.ram_tokens / result.prompt_tokens:.1%} of tokens"
        for what, value, best in (
            ("mean", result.mean_s, [other.mean_s for other in others]),
            ("p99", result.quantile_s(0.99), [other.quantile_s(0.99) for other in others]),
        ):
            found.append(
                measured(
                    f"simulated, {name}: {what} time to first token",
                    value * 1e3,
                    "ms",
                    reference=min(best) * 1e3 if judged else None,
                    target=Target("<=", 1) if judged else None,
                    note=f"{hits}; against the best of the others" if judged else hits,
                )
            )
    return found


def table(results: Mapping[str, SimulationResult]) -> Table:
    """Return a table with one line for each profile."""
    shown = Table("profile", title="Simulated replicas, sessions of several turns")
    for column in ("device hits", "RAM hits", "mean TTFT", "p50", "p99"):
        shown.add_column(column, justify="right")
    for name, result in results.items():
        seconds = (result.mean_s, result.quantile_s(0.5), result.quantile_s(0.99))
        shown.add_row(
            name,
            f"{result.device_tokens / result.prompt_tokens:.1%}",
            f"{result.ram_tokens / result.prompt_tokens:.1%}",
            *(f"{value * 1e3:,.0f} ms" for value in seconds),
        )
    return shown


def policies(examples: Path) -> dict[str, Policy]:
    """Return what makes each profile, by name; read configurations in the folder `examples`.

    Raises InvalidSettings.
    """
    found: dict[str, Policy] = {name: _strategy(name) for name in _STRATEGIES}
    for name, file in _FILES.items():
        found[name] = _file(read_configuration(str(examples / file)))
    found["expected-ttft"] = _file(read_configuration(None))
    return found


def _strategy(name: str) -> Policy:
    def make(endpoints: Sequence[Endpoint]) -> Profile:
        index = EstimatedIndex({})
        _size(index, endpoints)
        return build_strategies({"prefix": index})[name]

    return make


def _file(configuration: Configuration) -> Policy:
    def make(endpoints: Sequence[Endpoint]) -> Profile:
        made = {}
        for name, spec in configuration.indexes.items():
            made[name] = indexes.build_estimated(spec)
            if spec.autotune:
                _size(made[name], endpoints)
        return next(iter(build_profiles(configuration, made).values()))

    return make


def _size(index: EstimatedIndex, endpoints: Sequence[Endpoint]) -> None:
    """Set the index's sizes to those that the replicas' metrics report."""
    for endpoint in endpoints:
        for tier, size in endpoint.load.tiers.items():
            index.resize(endpoint.name, tier, size.capacity_tokens)
        block_tokens = compared(endpoint.load.block_tokens or indexes.BLOCK_TOKENS)
        index.set_block_tokens(endpoint.name, block_tokens)
    assert DEVICE in endpoints[0].load.tiers
