"""Open-loop traffic: prompts that share prefixes, their arrival times, and the sending client.

A request is sent when it is due, however many others are still in flight. So a queue that a
router's choice creates delays all requests behind it, which closed-loop clients would hide.

Invariants: the same traffic and seed give the same groups, questions and arrival times; prompts of
two editions share no block, and differ only in their opening; two prompts of one edition share
their group's prefix or nothing. A time to first token counts from the moment the request was due,
so that a client that falls behind hides nothing. A request that fails does not end the run.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import msgspec

from kvtier.clock import Clock, MonotonicClock, seeded
from kvtier.errors import InvalidSettings
from kvtier_bench.client import CompletionResult, RequestFailed, ServerAddress, complete
from kvtier_bench.workload import Decode, Encode, Workload, build_prompts

_EDITIONS: Final = 9_000
"""The number of editions; their numbers have equal widths, so that prompts have equal lengths."""


class Traffic(Workload, frozen=True, kw_only=True):
    """A shared-prefix workload for several replicas; `device_blocks` is that of each replica."""

    busy_percent: int
    """The arrival rate in percent of the replicas' measured capacity."""
    ram_blocks: int
    """The number of blocks in the RAM tier of each replica."""


class Arrival(NamedTuple):
    """One request, due `due_s` seconds after the start of the run."""

    group: int
    question: int
    due_s: float
    text: str
    tokens: int
    """The length of the prompt in tokens."""

    @property
    def label(self) -> str:
        """The name of the request, the same in every run."""
        return f"{self.group}/{self.question}"


class Schedule:
    """The requests of one round, which every contestant gets in an edition of its own."""

    def __init__(
        self, traffic: Traffic, encode: Encode, decode: Decode, seed: int, per_minute: float
    ) -> None:
        """Raise InvalidSettings if the corpus is too short for the workload."""
        self._encode = encode
        self._prompts = build_prompts(traffic, encode, seed)
        self._bodies = [decode(prompt.tokens) for prompt in self._prompts]
        self._due_s = arrivals_s(len(self._prompts), per_minute, seed)

    def edition(self, number: int) -> list[Arrival]:
        """Return the requests with the openings of edition `number`, in order of arrival."""
        arrivals = []
        for prompt, due_s, body in zip(self._prompts, self._due_s, self._bodies, strict=True):
            text = opening(number, prompt.group) + body
            arrivals.append(Arrival(*prompt[:2], due_s, text, len(self._encode(text))))
        return arrivals


def opening(edition: int, group: int) -> str:
    """Return the first words of a prompt, unique to edition and group.

    Raises InvalidSettings for an edition beyond the last.
    """
    if not 0 <= edition < _EDITIONS:
        raise InvalidSettings(f"only {_EDITIONS} editions, not {edition}: measure fewer rounds")
    return f"Edition {edition + 1_000}, volume {group + 100}.\n\n"


def arrivals_s(count: int, per_minute: float, seed: int) -> Sequence[float]:
    """Return the arrival times in seconds from the start of the run.

    Gaps are exponential, as with many independent clients. They are scaled so that the last request
    arrives exactly when the rate says, and no round is busier than another by chance.
    """
    random = seeded(seed)
    gaps = [random.expovariate(1.0) for _ in range(count)]
    scale = count * 60.0 / per_minute / sum(gaps)
    moments, at_s = [], 0.0
    for gap in gaps:
        at_s += gap * scale
        moments.append(at_s)
    return moments


class ArrivalResult(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one request, or the error that it ended with."""

    label: str
    due_s: float
    late_s: float
    """The delay between the due time and sending. The latencies of `completion` include it."""
    completion: CompletionResult | None = None
    error: str = ""


def send(
    endpoint: ServerAddress,
    arrivals: Sequence[Arrival],
    output_len: int,
    clock: Clock | None = None,
) -> list[ArrivalResult]:
    """Send each request when it is due; return all results in order of arrival."""
    clock = clock or MonotonicClock()
    started_s = clock.now_s()

    def ask(arrival: Arrival) -> ArrivalResult:
        late_s = max(0.0, clock.now_s() - started_s - arrival.due_s)
        answer = ArrivalResult(label=arrival.label, due_s=arrival.due_s, late_s=late_s)
        try:
            found = complete(endpoint, arrival.text, output_len)
        except RequestFailed as error:
            return msgspec.structs.replace(answer, error=str(error)[:500])
        felt = msgspec.structs.replace(
            found, ttft_s=found.ttft_s + late_s, e2e_s=found.e2e_s + late_s
        )
        return msgspec.structs.replace(answer, completion=felt)

    # One thread for each request, so that none waits for another one's answer.
    with ThreadPoolExecutor(max(1, len(arrivals)), thread_name_prefix="bench-client") as pool:
        pending = []
        for arrival in arrivals:
            clock.sleep(max(0.0, started_s + arrival.due_s - clock.now_s()))
            pending.append(pool.submit(ask, arrival))
        return [future.result() for future in pending]
