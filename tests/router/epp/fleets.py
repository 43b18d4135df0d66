"""A fleet of healthy replicas, and fakes of the chooser and the prompt reader."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from kvtier.index.fleet.prompt import Prompt, TextPrompt, UnreadPrompt
from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest, ReplicaLoad
from kvtier.router.choose.decision import RoutingDecision
from kvtier.router.epp.conversation import GatewayRequest
from kvtier.router.fleet.members import Fleet, ModelCard
from kvtier.router.fleet.replicas import Replica

ADDRESSES = ("10.0.0.1:8000", "10.0.0.2:8000", "10.0.0.3:8000", "[fd00::1]:8000")


def fleet_of(addresses: Sequence[str] = ADDRESSES, model: str = "m") -> Fleet:
    fleet = Fleet()
    fleet.update([Replica(name=address, url=f"http://{address}") for address in addresses])
    for number, member in enumerate(fleet.members):
        fleet.mark_healthy(member, [ModelCard(id=model, text=b"{}")], 0.0)
        member.endpoint.load = ReplicaLoad(waiting=number)
    return fleet


class First:
    """A Chooser that keeps the candidates' order."""

    headers: frozenset[str] = frozenset()
    reads_prompts = True

    def __init__(self, keeps: int = 1, removes: Sequence[str] = ()) -> None:
        self._keeps = keeps
        self._removes = removes
        self.requests: list[InferenceRequest] = []
        self.routed_to: list[str] = []

    def decide(
        self, request: InferenceRequest, endpoints: Sequence[Endpoint], now_s: float
    ) -> RoutingDecision:
        self.requests.append(request)
        decision = RoutingDecision(
            "first", request, [Candidate(one, {}) for one in endpoints], now_s
        )
        decision.kept = [
            one for one in decision.candidates if one.endpoint.address not in self._removes
        ]
        decision.chosen = decision.kept[: self._keeps]
        return decision

    def routed(
        self, request: InferenceRequest, decision: RoutingDecision, chosen: Candidate
    ) -> None:
        self.routed_to.append(chosen.endpoint.address)

    def response_headers(self, request: InferenceRequest, endpoint: Endpoint) -> dict[str, str]:
        return {"x-session-token": endpoint.name}


class Characters:
    """A PromptReader that uses the body's text."""

    def __init__(self) -> None:
        self.wait = asyncio.sleep

    async def of(self, body: Mapping[str, Any], model: str) -> Prompt:
        await self.wait(0)
        return TextPrompt(str(body).encode(), model)

    def unread(self, body: Mapping[str, Any]) -> Prompt:
        return UnreadPrompt(len(str(body)))


def asked(body: bytes = b'{"model": "m", "max_tokens": 5}', **fields: object) -> GatewayRequest:
    headers = {":method": "POST", ":path": "/v1/completions", "content-type": "application/json"}
    headers |= fields.pop("headers", {})  # type: ignore[operator]
    return GatewayRequest(headers=headers, body=body, **fields)  # type: ignore[arg-type]
