"""Sends each request when it is due, however many are still waiting for their answers.

Invariants: a time to first token counts from the moment the request was due, so that a client
which falls behind hides nothing; a request that fails is an answer with an error, never the end
of the run.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from kvtier.clock import Clock, MonotonicClock
from kvtier_bench.client import Completion, Endpoint, RequestFailed, complete
from kvtier_bench.router.traffic import Arrival


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one request."""

    label: str
    due_s: float
    late_s: float
    """It was sent so long after it was due; its times count that as well."""
    completion: Completion | None = None
    error: str = ""


def send(
    endpoint: Endpoint,
    arrivals: Sequence[Arrival],
    output_len: int,
    clock: Clock | None = None,
) -> list[Answer]:
    """All of them, in order of arrival; blocks until the last is answered."""
    clock = clock or MonotonicClock()
    started_s = clock.now_s()

    def ask(arrival: Arrival) -> Answer:
        late_s = max(0.0, clock.now_s() - started_s - arrival.due_s)
        answer = Answer(label=arrival.label, due_s=arrival.due_s, late_s=late_s)
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
