"""Which paths go to replicas, which the router answers itself, which it refuses.

Invariant: a path is judged as an engine would read it, with `%2e` decoded; what could be read
in two ways is served by nobody.
"""

import enum
from typing import Final
from urllib.parse import parse_qs

V1: Final = "/v1/"

# The engine's own paths outside of /v1 that are about one request.
_PLAIN: Final = frozenset(
    (
        *("/tokenize", "/detokenize", "/score", "/rerank", "/v2/rerank", "/classify"),
        *("/pooling", "/invocations", "/generative_scoring", "/v2/embed", "/cohere/v2/chat"),
    )
)
# As some clients write them.
_SHORT: Final = frozenset(("/completions", "/chat/completions", "/embeddings", "/responses"))
# They change one replica, so asking any of them is never what was meant.
_ONE_REPLICA: Final = frozenset(("/v1/load_lora_adapter", "/v1/unload_lora_adapter"))


_SOCKETS: Final = frozenset(("/v1/realtime",))
# A server may fold, cut or end a path there.
_AMBIGUOUS: Final = ("//", "/.", "\\", "\0", "#")


class PathKind(enum.Enum):
    """What to do with a request."""

    HEALTH = "health"
    LIVE = "live"
    METRICS = "metrics"
    MODELS = "models"
    MODEL = "model"
    ANY = "any"
    """Any replica will do: it is about no model."""
    SEARCH = "search"
    """One replica has it, and only asking tells which."""
    UPGRADE = "upgrade"
    """A WebSocket with one replica, for as long as both sides like."""
    CHOOSE = "choose"
    """To the replica that is chosen for the model and prompt in its body."""
    ONE_REPLICA = "one_replica"
    NONE = "none"


_LOCAL: Final = {
    "/health": PathKind.HEALTH,
    "/ping": PathKind.HEALTH,
    "/livez": PathKind.LIVE,
    "/metrics": PathKind.METRICS,
    "/v1/models": PathKind.MODELS,
    "/version": PathKind.ANY,
}


def kind(method: str, path: str) -> PathKind:
    """Of a request; `path` is decoded and without its query."""
    if method == "POST" and (path in _PLAIN or path in _SHORT):
        return PathKind.CHOOSE
    if any(odd in path for odd in _AMBIGUOUS):
        return PathKind.NONE
    if method in ("GET", "HEAD") and path in _LOCAL:
        return _LOCAL[path]
    if path in _SOCKETS:
        return PathKind.UPGRADE if method == "GET" else PathKind.NONE
    if path in _ONE_REPLICA:
        return PathKind.ONE_REPLICA
    if not path.startswith(V1) or path == "/v1/models":
        return PathKind.NONE
    if method == "GET" and path.startswith("/v1/models/"):
        return PathKind.MODEL
    if method in ("GET", "DELETE") or (method == "POST" and path.endswith("/cancel")):
        return PathKind.SEARCH
    return PathKind.CHOOSE if method == "POST" else PathKind.NONE


def model_of(target: str) -> str:
    """The model that a query names; empty where it names none."""
    return parse_qs(target.partition("?")[2]).get("model", [""])[-1]


def at_replica(target: str) -> str:
    """The target of the request as the engine knows it: `/completions` is under /v1."""
    path = target.partition("?")[0]
    return f"/v1{target}" if path in _SHORT else target
