"""`session-affinity-scorer`: the endpoint that served the session before. 1 for it, else 0.

`encoded_endpoint_header`: the client sends back the header that it was given, base64 of the
endpoint's name (or address); nothing is remembered here. `session_id`: the client sends an
identifier, and the endpoint that served it last is remembered for a while.
"""

import base64
import binascii
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from kvtier.router.choose import plugins
from kvtier.router.choose.base import Candidate, Endpoint, InferenceRequest

_MOST_SESSIONS: Final = 65_536
"""The least recently used is forgotten beyond it: clients invent identifiers."""
_LONGEST_ID: Final = 256


class EncodedEndpointHeader(
    msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True
):
    """`tokenOf` is kvtier's own: what the header holds."""

    header: str = "x-session-token"
    token_of: Literal["name", "address"] = "name"


class SessionIdSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A header that may hold the identifier."""

    header: str


class SessionId(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """The first header of `sources` that is there is the identifier."""

    sources: tuple[SessionIdSource, ...] = (SessionIdSource("x-session-id"),)
    eviction_ttl_seconds: float = 300.0
    eviction_sweep_seconds: float = 10.0
    """Of no effect: what is too old is not used, and goes when there are too many."""

    def __post_init__(self) -> None:
        """Refuse what is no time."""
        for name, seconds in (
            ("evictionTtlSeconds", self.eviction_ttl_seconds),
            ("evictionSweepSeconds", self.eviction_sweep_seconds),
        ):
            if not seconds >= 0:  # NaN is neither
                raise ValueError(f"{name} is {seconds:g}; write 0 or more")


class SessionAffinity:
    """By what the client says, and in the second strategy by what was remembered."""

    class Parameters(plugins.PluginParameters, frozen=True, kw_only=True):
        """Only the part of the chosen strategy is used."""

        strategy: Literal["encoded_endpoint_header", "session_id"] = "encoded_endpoint_header"
        encoded_endpoint_header_config: EncodedEndpointHeader = EncodedEndpointHeader()
        session_id_config: SessionId = SessionId()

    def __init__(self, parameters: Parameters, context: plugins.PluginContext) -> None:
        encoded = parameters.encoded_endpoint_header_config
        self._encoded = parameters.strategy == "encoded_endpoint_header"
        self._header = encoded.header.lower()
        self._token_of = encoded.token_of
        self._sources = [one.header.lower() for one in parameters.session_id_config.sources]
        self._ttl_s = parameters.session_id_config.eviction_ttl_seconds
        self._now_s = context.now_s
        self._sessions: OrderedDict[str, tuple[str, float]] = OrderedDict()

    @property
    def headers(self) -> frozenset[str]:
        """What it reads of a request."""
        return frozenset([self._header] if self._encoded else self._sources)

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """O(n)."""
        wanted = self._decoded(request) if self._encoded else self._remembered(request)
        if not wanted:
            return [0.0] * len(candidates)
        return [
            1.0 if wanted in (candidate.endpoint.name, candidate.endpoint.address) else 0.0
            for candidate in candidates
        ]

    def routed(
        self, request: InferenceRequest, candidates: Sequence[Candidate], chosen: Candidate
    ) -> None:
        """Remember, where the strategy does."""
        session = None if self._encoded else self._session(request)
        if session is None:
            return
        sessions = self._sessions
        sessions[session] = (chosen.endpoint.name, self._now_s())
        sessions.move_to_end(session)
        if len(sessions) > _MOST_SESSIONS:
            sessions.popitem(last=False)

    def response_headers(self, request: InferenceRequest, endpoint: Endpoint) -> Mapping[str, str]:
        """What the client has to send back."""
        if not self._encoded:
            return {}
        text = endpoint.name if self._token_of == "name" else endpoint.address
        return {self._header: base64.b64encode(text.encode()).decode()}

    def _decoded(self, request: InferenceRequest) -> str:
        try:
            return base64.b64decode(request.headers.get(self._header, ""), validate=True).decode()
        except (binascii.Error, ValueError):  # anybody may send anything
            return ""

    def _session(self, request: InferenceRequest) -> str | None:
        found = (request.headers.get(header, "") for header in self._sources)
        session = next((text for text in found if text), None)
        return session if session and len(session) <= _LONGEST_ID else None

    def _remembered(self, request: InferenceRequest) -> str:
        session = self._session(request)
        if session is None:
            return ""
        name, used_s = self._sessions.get(session, ("", 0.0))
        return name if self._now_s() - used_s <= self._ttl_s else ""


PLUGIN = SessionAffinity
