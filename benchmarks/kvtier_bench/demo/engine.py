"""A running engine as the demo uses it, and the real one behind that."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

from kvtier.clock import Clock
from kvtier_bench.client import CompletionResult, complete
from kvtier_bench.runs import RunSummary, lower_tier_hits, summarize
from kvtier_bench.server import Server, ServerSettings, Tell
from kvtier_bench.workload import Workload, WorkloadPrompt


class Load(NamedTuple):
    """The answered requests of a load, and when each was answered, in seconds from the start."""

    answers: list[CompletionResult]
    finished_s: list[float]

    def summary(self, count: int, hits: dict[str, float]) -> RunSummary:
        """Return the numbers of the first `count` requests."""
        wall_s = max(self.finished_s[:count])
        return summarize(self.answers[:count], wall_s, cpu_s=0.0, hits=hits)


class Engine(Protocol):
    """A running server, as the demo uses it."""

    def ask(self, tokens: Sequence[int], output_len: int, salt: str) -> CompletionResult:
        """Send one request and return its answer."""
        ...

    def serve(
        self,
        prompts: Sequence[WorkloadPrompt],
        workload: Workload,
        salt: str,
        *,
        deadline_s: float,
        tell: Tell,
    ) -> Load:
        """Send `prompts` in order, none after `deadline_s`; return those answered."""
        ...

    def reset_device(self) -> None:
        """Empty the device's prefix cache; the tiers keep what they hold."""
        ...

    def hits(self) -> dict[str, float]:
        """Return the prompt tokens that each lower tier has served so far."""
        ...


OpenEngine = Callable[[ServerSettings, Tell], AbstractContextManager[Engine]]


class VLLM:
    """The real engine behind a `Server`."""

    def __init__(self, server: Server, clock: Clock) -> None:
        self._server = server
        self._clock = clock

    def ask(self, tokens: Sequence[int], output_len: int, salt: str) -> CompletionResult:
        """Send one request and return its answer."""
        return complete(self._server.endpoint, tokens, output_len, salt)

    def serve(
        self,
        prompts: Sequence[WorkloadPrompt],
        workload: Workload,
        salt: str,
        *,
        deadline_s: float,
        tell: Tell,
    ) -> Load:
        """Send `prompts` in order, none after `deadline_s`; return those answered."""
        answers: dict[int, tuple[CompletionResult, float]] = {}
        waiting = iter(range(len(prompts)))
        taking = threading.Lock()
        stopped = threading.Event()
        started_s = self._clock.now_s()

        def work() -> None:
            while not stopped.is_set() and self._clock.now_s() < deadline_s:
                with taking:
                    number = next(waiting, None)
                if number is None:
                    return
                answer = self.ask(prompts[number].tokens, workload.output_len, salt)
                answers[number] = answer, self._clock.now_s() - started_s
                tell(f"{len(answers)} of {len(prompts)} requests answered")

        workers = workload.concurrency
        pool = ThreadPoolExecutor(workers, thread_name_prefix="demo-client")
        try:
            for future in [pool.submit(work) for _ in range(workers)]:
                future.result()
        finally:
            # After Ctrl-C nothing waits for an answer: the server is about to be stopped.
            stopped.set()
            pool.shutdown(wait=False)
        ordered = [answers[number] for number in sorted(answers)]
        return Load([answer for answer, _ in ordered], [at_s for _, at_s in ordered])

    def reset_device(self) -> None:
        """Empty the device's prefix cache; the tiers keep what they hold."""
        self._server.reset_device()

    def hits(self) -> dict[str, float]:
        """Return the prompt tokens that each lower tier has served so far."""
        return lower_tier_hits(self._server.metrics())


def open_vllm(clock: Clock) -> OpenEngine:
    """Return a function that starts vLLM as a child process."""

    @contextmanager
    def open_engine(settings: ServerSettings, tell: Tell) -> Iterator[Engine]:
        with Server(settings) as server:
            server.start(tell)
            yield VLLM(server, clock)

    return open_engine
