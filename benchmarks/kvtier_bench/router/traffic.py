"""Requests that arrive by themselves: what is asked, in whose words, and when.

Open loop: a request comes when its time has come, however many others wait. So a choice that
makes a queue is felt by everybody behind it, which a client that waits for its answer hides.

Invariants: the same traffic and seed give the same groups, questions and moments; texts of two
editions share no block, and differ in nothing else; two texts of one edition share a group's
prefix or nothing.
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
"""Numbers of one width, so that every edition's prompts are equally long."""


class Traffic(Workload, frozen=True, kw_only=True):
    """A shared-prefix workload before several replicas. `device_blocks` is of each of them."""

    busy_percent: int
    """How fast requests come, of what the replicas could do at best; see `capacity`."""
    ram_blocks: int
    """Of each replica: what the tier below the device holds."""


class Arrival(NamedTuple):
    """One request. `due_s` counts from the start of the run."""

    group: int
    question: int
    due_s: float
    text: str
    tokens: int
    """How long the model sees it."""

    @property
    def label(self) -> str:
        """Names the request in every run alike."""
        return f"{self.group}/{self.question}"


class Schedule:
    """One run's requests, for as many contestants as there are."""

    def __init__(
        self, traffic: Traffic, encode: Encode, decode: Decode, seed: int, per_minute: float
    ) -> None:
        """Raises InvalidSettings where the corpus is too short for the workload."""
        self._encode = encode
        self._prompts = build_prompts(traffic, encode, seed)
        self._bodies = [decode(prompt.tokens) for prompt in self._prompts]
        self._due_s = arrivals_s(len(self._prompts), per_minute, seed)

    def edition(self, number: int) -> list[Arrival]:
        """The same requests in the words of an edition of their own, in order of arrival."""
        arrivals = []
        for prompt, due_s, body in zip(self._prompts, self._due_s, self._bodies, strict=True):
            text = opening(number, prompt.group) + body
            arrivals.append(Arrival(*prompt[:2], due_s, text, len(self._encode(text))))
        return arrivals


def opening(edition: int, group: int) -> str:
    """The first words of a prompt: nobody else's. Raises InvalidSettings: too many editions."""
    if not 0 <= edition < _EDITIONS:
        raise InvalidSettings(f"edition {edition} of {_EDITIONS}: measure fewer rounds")
    return f"Edition {edition + 1_000}, volume {group + 100}.\n\n"


def arrivals_s(count: int, per_minute: float, seed: int) -> Sequence[float]:
    """Seconds from the start.

    Gaps are exponential, as of many clients that know nothing of each other, and scaled so that
    the last comes when it has to by the rate: no round is by chance a busier one.
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
    """What became of one request."""

    label: str
    due_s: float
    late_s: float
    """It was sent so long after it was due; its times count that as well."""
    completion: CompletionResult | None = None
    error: str = ""


def send(
    endpoint: ServerAddress,
    arrivals: Sequence[Arrival],
    output_len: int,
    clock: Clock | None = None,
) -> list[ArrivalResult]:
    """All of them, in order of arrival; blocks until the last is answered."""
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

    # One thread a request: none waits for a thread that waits for an answer.
    with ThreadPoolExecutor(max(1, len(arrivals)), thread_name_prefix="bench-client") as pool:
        pending = []
        for arrival in arrivals:
            clock.sleep(max(0.0, started_s + arrival.due_s - clock.now_s()))
            pending.append(pool.submit(ask, arrival))
        return [future.result() for future in pending]
