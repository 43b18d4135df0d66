"""`session-affinity-scorer`: prefers the replica that served the session before.

The score is 1 for that replica and 0 for all others. With the strategy `encoded_endpoint_header`,
the client returns a header from an earlier response, the base64 of the replica's name or address,
and the router keeps no state. With `session_id`, the client sends an identifier, and the router
remembers for a limited time which replica served it last.
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
"""The limit on remembered sessions, as clients can invent identifiers; beyond it, the least
recently used session is removed."""
_LONGEST_ID: Final = 256


class EncodedEndpointHeader(
    msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True
):
    """The header and its content; `tokenOf` is an extension of kvtier."""

    header: str = "x-session-token"
    token_of: Literal["name", "address"] = "name"


class SessionIdSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request header that may contain the session's identifier."""

    header: str


class SessionId(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Settings for identified sessions; the first header of `sources` that is present counts."""

    sources: tuple[SessionIdSource, ...] = (SessionIdSource("x-session-id"),)
    eviction_ttl_seconds: float = 300.0
    eviction_sweep_seconds: float = 10.0
    """Without effect: expired sessions are ignored, and removed when there are too many."""

    def __post_init__(self) -> None:
        """Raise ValueError for a negative time."""
        for name, seconds in (
            ("evictionTtlSeconds", self.eviction_ttl_seconds),
            ("evictionSweepSeconds", self.eviction_sweep_seconds),
        ):
            if not seconds >= 0:  # also rejects NaN
                raise ValueError(f"{name} is {seconds:g}; write 0 or more")


class SessionAffinityParameters(plugins.PluginParameters, frozen=True, kw_only=True):
    """The strategy, and the settings of both; only those of the chosen strategy are used."""

    strategy: Literal["encoded_endpoint_header", "session_id"] = "encoded_endpoint_header"
    encoded_endpoint_header_config: EncodedEndpointHeader = EncodedEndpointHeader()
    session_id_config: SessionId = SessionId()


class SessionAffinityScorer:
    """A scorer by the replica that a client's header or a remembered session names."""

    Parameters = SessionAffinityParameters

    def __init__(
        self, parameters: SessionAffinityParameters, context: plugins.PluginContext
    ) -> None:
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
        """The request headers that the scorer reads, in lower case."""
        return frozenset([self._header] if self._encoded else self._sources)

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """Return a score per candidate."""
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
        """Remember `chosen` for the session, if the strategy is `session_id`."""
        session = None if self._encoded else self._session(request)
        if session is None:
            return
        sessions = self._sessions
        sessions[session] = (chosen.endpoint.name, self._now_s())
        sessions.move_to_end(session)
        if len(sessions) > _MOST_SESSIONS:
            sessions.popitem(last=False)

    def response_headers(self, request: InferenceRequest, endpoint: Endpoint) -> Mapping[str, str]:
        """Return the header that the client has to send back, if the strategy has one."""
        if not self._encoded:
            return {}
        text = endpoint.name if self._token_of == "name" else endpoint.address
        return {self._header: base64.b64encode(text.encode()).decode()}

    def _decoded(self, request: InferenceRequest) -> str:
        try:
            return base64.b64decode(request.headers.get(self._header, ""), validate=True).decode()
        except (binascii.Error, ValueError):  # the client may send arbitrary bytes
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


PLUGIN = SessionAffinityScorer
