"""A real router on a real socket in front of real replicas, for the tests of the data path.

It chooses replicas in turn and does not compare prompts; choosing has its own tests.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import uvloop

from kvtier.index.fleet.prompt import Prompt, TextPrompt, UnreadPrompt
from kvtier.router.assembly import Choices, PromptReader
from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest
from kvtier.router.choose.decision import RoutingDecision
from kvtier.router.fleet.replicas import ReplicaDiscovery, StaticDiscovery, parse_replica
from kvtier.router.route.keys import ApiKeys
from kvtier.router.route.options import RouteOptions
from kvtier.router.route.server import Router, RouterDependencies
from tests.router.replicas import Replica, replicas

# The first uvloop of a process opens a pipe that stays open; no test should fail for it.
uvloop.new_event_loop().close()


class InTurn:
    """A chooser that orders endpoints by name and starts with the next one each time."""

    headers: frozenset[str] = frozenset()
    reads_prompts = True

    def __init__(self, *, only: str | None = None, told: Mapping[str, str] | None = None) -> None:
        self.only = only
        self.told = dict(told or {})
        self.seen: list[InferenceRequest] = []
        self.routed_to: list[str] = []
        self._turn = 0

    def decide(
        self, request: InferenceRequest, endpoints: Sequence[Endpoint], now_s: float
    ) -> RoutingDecision:
        self.seen.append(request)
        ordered = sorted(endpoints, key=lambda endpoint: endpoint.name)
        turn = self._turn % len(ordered)
        self._turn += 1
        candidates = [Candidate(endpoint, {}) for endpoint in ordered[turn:] + ordered[:turn]]
        decision = RoutingDecision("in turn", request, candidates, now_s)
        decision.totals = [0.0] * len(candidates)
        decision.chosen = [
            candidate for candidate in candidates if self.only in (None, candidate.endpoint.name)
        ]
        return decision

    def routed(
        self, request: InferenceRequest, decision: RoutingDecision, chosen: Candidate
    ) -> None:
        self.routed_to.append(chosen.endpoint.name)

    def response_headers(self, request: InferenceRequest, endpoint: Endpoint) -> dict[str, str]:
        return self.told


class Texts:
    """A prompt reader that compares bodies as texts."""

    async def of(self, body: Mapping[str, Any], model: str) -> Prompt:
        return TextPrompt(str(body).encode(), model)

    def unread(self, body: Mapping[str, Any]) -> Prompt:
        return UnreadPrompt(len(str(body)))


FAST = {
    "health_interval": 0.05,
    "health_timeout": 1.0,
    "port": 0,
    "drain": 0.0,
    "drain_timeout": 2.0,
}


class Stand:
    """A router, its replicas and a client."""

    def __init__(self, router: Router, made: list[Replica], client: aiohttp.ClientSession) -> None:
        self.router = router
        self.replicas = made
        self.client = client
        self.url = f"http://127.0.0.1:{router.port}"

    def post(self, path: str = "/v1/completions", **fields: Any) -> Any:
        headers = fields.pop("headers", None)
        body = {"model": "m", "prompt": "hello", **fields}
        return self.client.post(self.url + path, json=body, headers=headers)

    async def metric(self, line: str) -> float:
        async with self.client.get(self.url + "/metrics") as answer:
            for found in (await answer.text()).splitlines():
                if found.startswith(line + " "):
                    return float(found.split()[-1])
        raise AssertionError(f"no {line}")


@asynccontextmanager
async def router_over(
    made: Sequence[Replica],
    chooser: Any = None,
    named: Mapping[str, Any] | None = None,
    keys: Sequence[str] = (),
    discovery: ReplicaDiscovery | None = None,
    replica_key: str | None = None,
    prompts: PromptReader | None = None,
    **options: Any,
) -> AsyncIterator[Router]:
    fixed = [parse_replica(f"{replica.url},name={replica.name}", "test") for replica in made]
    wiring = RouterDependencies(
        discovery=discovery or StaticDiscovery(fixed),
        choices=Choices(chooser or InTurn(), named),
        prompts=prompts or Texts(),
        keys=ApiKeys(keys),
        replica_key=replica_key,
    )
    router = Router(RouteOptions(**{**FAST, **options}), wiring)
    try:
        await router.start()
        yield router
    finally:
        await router.close()


@asynccontextmanager
async def stand(*models: str, count: int = 1, **settings: Any) -> AsyncIterator[Stand]:
    async with (
        replicas(*models, count=count) as made,
        router_over(made, **settings) as router,
        aiohttp.ClientSession() as client,
    ):
        yield Stand(router, made, client)


async def until(done: Callable[[], object], what: str) -> None:
    """Wait until `done` returns a true value; fail with `what` after five seconds."""
    for _ in range(500):
        if done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"never: {what}")


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test on its own uvloop loop, and check that no task outlives it."""

    async def whole() -> None:
        await test
        await until(lambda: len(asyncio.all_tasks()) == 1, "the last task ends")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(whole())
