"""Choosing the endpoints for a request that a gateway asks about.

This is where the protocol ends and the choosing that `kvtier route` also uses begins.
Invariants: only endpoints that are available and that the gateway's hint allows are named, and
none, not even as a fallback, that the profile's filters removed; a request that names no model goes
to any endpoint and does not change the indexes.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from kvtier.clock import Clock, MonotonicClock, seeded
from kvtier.router.assembly import Chooser, PromptReader, prompt_for
from kvtier.router.choose.base import Endpoint, InferenceRequest
from kvtier.router.choose.decision import RoutingDecision
from kvtier.router.epp import messages
from kvtier.router.epp.conversation import GatewayRequest
from kvtier.router.fleet.members import Fleet
from kvtier.router.fleet.waiting import Waiting
from kvtier.router.request import message as bodies
from kvtier.router.request import paths
from kvtier.router.request.refusals import Refusal, invalid, overloaded, unavailable

_RETRY_AFTER_S: Final = 1
_ANY_SEED: Final = 0
_read_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


class DropReason(enum.Enum):
    """Why a request was dropped, with the values of llm-d's header."""

    SATURATED = "rejected-saturated"
    NO_ENDPOINTS = "rejected-no-endpoints"
    INVALID = "rejected-invalid"
    """kvtier's own value: the request is invalid, or names a model that no endpoint serves."""
    SHUTTING_DOWN = "rejected-shutting-down"
    FAILED = "rejected-failed"
    """kvtier's own value: an internal error."""


class RequestDropped(Exception):
    """A request for which no endpoint is chosen; its client gets `refusal`."""

    def __init__(self, refusal: Refusal, reason: DropReason) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal
        self.reason = reason


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """The endpoint chosen for a request, and its fallbacks."""

    endpoint: Endpoint
    addresses: Sequence[str]
    """The endpoint's address, then those of the fallbacks in order."""
    tokens: int = 0
    """Tokens of the prompt plus the maximum of the output."""
    missing_tokens: int = 0
    """Tokens of the prompt that the endpoint has to compute."""
    body: bytes | None = None
    """The body that replaces the client's, if any."""
    response_headers: Mapping[str, str] = {}
    """Headers to add for the client, if the response is observed."""


class Picking(Protocol):
    """What the service chooses with. Belongs to the event loop's thread."""

    async def choose(self, incoming: GatewayRequest) -> Placement:
        """Choose the endpoints for a request. Raises RequestDropped."""
        ...


class PickingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a FleetPicking."""

    fallbacks: int = 2
    """How many endpoints are named after the best."""
    sheds_below: int = 0
    """Requests of a lower priority get 429 while the fleet is saturated."""
    objectives: Mapping[str, int] = {}
    """Priorities by the name of their objective."""
    takes_test_selection: bool = False
    """Whether a client may name the endpoints, as conformance tests do."""


class FleetPicking:
    """A Picking that chooses from a fleet by a profile."""

    def __init__(
        self,
        fleet: Fleet,
        chooser: Chooser,
        prompts: PromptReader,
        options: PickingOptions,
        *,
        saturation: Callable[[Sequence[Endpoint], float], float] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`saturation` returns 1 or more if the endpoints are saturated; None sheds no requests."""
        self._fleet = fleet
        self._chooser = chooser
        self._prompts = prompts
        self._options = options
        self._saturation = saturation
        self._clock = clock or MonotonicClock()
        self._random = seeded(_ANY_SEED)
        self._serving = Waiting(fleet, in_flight=0, bound=0, timeout_s=0)

    async def choose(self, incoming: GatewayRequest) -> Placement:
        """Choose the endpoints for a request. Raises RequestDropped."""
        try:
            return await self._choose(incoming)
        except Refusal as refusal:
            reason = DropReason.NO_ENDPOINTS if refusal.status == 503 else DropReason.INVALID
            raise RequestDropped(refusal, reason) from refusal

    async def _choose(self, incoming: GatewayRequest) -> Placement:
        if (
            not incoming.body
            or paths.kind(incoming.method, incoming.path) is not paths.PathKind.CHOOSE
        ):
            return self._any(incoming)
        if not incoming.is_whole or self._selection(incoming):
            return self._any(incoming)
        content_type = incoming.headers.get("content-type", "")
        parsed = bodies.parse_body(incoming.body, content_type)
        rewritten = messages.model_rewrite(incoming.headers)
        model = rewritten or parsed.model
        prompt = await prompt_for(self._chooser, self._prompts, parsed.fields, model)
        request = InferenceRequest(
            request_id=incoming.headers.get(messages.REQUEST_ID, ""),
            model=model,
            prompt=prompt,
            max_tokens=parsed.max_tokens,
            headers=incoming.headers,
            priority=self._priority(incoming),
        )
        # Only after the last await: endpoints may come and go while the prompt is read.
        endpoints = self._allowed(incoming, self._serving.with_room(model))
        now_s = self._clock.now_s()
        self._shed(request, endpoints, now_s)
        decision = self._chooser.decide(request, endpoints, now_s)
        if not decision.chosen:
            raise unavailable("the profile's filters leave no endpoint for this request")
        best = decision.chosen[0]
        self._chooser.routed(request, decision, best)
        body = rewrite_model(incoming.body, content_type, rewritten) if rewritten else None
        return Placement(
            endpoint=best.endpoint,
            addresses=self._ordered(decision),
            tokens=prompt.tokens + parsed.max_tokens,
            missing_tokens=decision.missing_tokens(best),
            body=body,
            response_headers=self._chooser.response_headers(request, best.endpoint),
        )

    def _any(self, incoming: GatewayRequest) -> Placement:
        """Place a request at random, or in the order of a test's selection."""
        available = self._fleet.available()
        if not available:
            raise unavailable("no endpoint is ready")
        endpoints = list(self._allowed(incoming, available))
        if not self._selection(incoming):
            self._random.shuffle(endpoints)
        wanted = endpoints[: 1 + self._options.fallbacks]
        return Placement(endpoint=wanted[0], addresses=[one.address for one in wanted])

    def _allowed(
        self, incoming: GatewayRequest, endpoints: Sequence[Endpoint]
    ) -> Sequence[Endpoint]:
        """Return the endpoints that the gateway's hint and a test's selection allow.

        A test's selection also determines the order. Raises Refusal (503) if none is left.
        """
        if incoming.subset is not None:
            allowed = frozenset(incoming.subset)
            endpoints = [one for one in endpoints if one.address in allowed]
            if not endpoints:
                raise unavailable("none of the endpoints that the gateway allows is ready")
        if selection := self._selection(incoming):
            endpoints = [one for name in selection for one in endpoints if _matches(one, name)]
            if not endpoints:
                raise unavailable(f"no endpoint that {messages.TEST_SELECTION} names is ready")
        return endpoints

    def _selection(self, incoming: GatewayRequest) -> Sequence[str]:
        if not self._options.takes_test_selection:
            return ()
        texts = incoming.headers.get(messages.TEST_SELECTION, "").split(",")
        return [text.strip() for text in texts if text.strip()]

    def _priority(self, incoming: GatewayRequest) -> int:
        return self._options.objectives.get(messages.objective(incoming.headers), 0)

    def _shed(self, request: InferenceRequest, endpoints: Sequence[Endpoint], now_s: float) -> None:
        if self._saturation is None or request.priority >= self._options.sheds_below:
            return
        if self._saturation(endpoints, now_s) >= 1.0:
            refusal = overloaded("all endpoints are saturated; try again later", _RETRY_AFTER_S)
            raise RequestDropped(refusal, DropReason.SATURATED)

    def _ordered(self, decision: RoutingDecision) -> Sequence[str]:
        """Return the addresses of the chosen endpoints, then of others that the filters kept.

        The others are in order of their load, the least loaded first.
        """
        count = 1 + self._options.fallbacks
        addresses = [endpoint.address for endpoint in decision.endpoints[:count]]
        if len(addresses) < count:
            kept = [candidate.endpoint for candidate in decision.kept]
            others = [one for one in kept if one.address not in addresses]
            others.sort(key=lambda one: (one.load.waiting, one.load.running, one.load.kv_usage))
            addresses += [one.address for one in others[: count - len(addresses)]]
        return addresses


def _matches(endpoint: Endpoint, name: str) -> bool:
    """Return True if `name` is the endpoint's address, with or without its port."""
    host = endpoint.address.rpartition(":")[0]
    return name in (endpoint.address, host, host.strip("[]"))


def rewrite_model(body: bytes, content_type: str, model: str) -> bytes:
    """Return `body` with its model replaced; the values of other keys stay byte for byte the same.

    A gateway that splits traffic between versions of a model names the version in a header.
    Raises Refusal (400) if the body is not a JSON object.
    """
    if content_type.lower().startswith("multipart/"):
        raise invalid("the model in a multipart form cannot be rewritten")
    try:
        fields = _read_fields.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise bodies.unreadable(body, error) from error
    fields["model"] = msgspec.Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)
