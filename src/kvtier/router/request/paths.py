"""Classification of request paths: forwarded to replicas, answered by the router, or refused.

Invariant: a path is judged as an engine would read it, with `%2e` decoded; a path that servers
may interpret in different ways is refused.
"""

import enum
from typing import Final
from urllib.parse import parse_qs

V1: Final = "/v1/"

# Paths of the engine outside /v1 that carry one request for a model.
_PLAIN: Final = frozenset(
    (
        *("/tokenize", "/detokenize", "/score", "/rerank", "/v2/rerank", "/classify"),
        *("/pooling", "/invocations", "/generative_scoring", "/v2/embed", "/cohere/v2/chat"),
    )
)
# Paths that some clients send without the /v1 prefix.
_SHORT: Final = frozenset(("/completions", "/chat/completions", "/embeddings", "/responses"))
# These change the state of one replica, so sending them to an arbitrary one is an error.
_ONE_REPLICA: Final = frozenset(("/v1/load_lora_adapter", "/v1/unload_lora_adapter"))
_SOCKETS: Final = frozenset(("/v1/realtime",))
# Servers may normalize or truncate a path at these.
_AMBIGUOUS: Final = ("//", "/.", "\\", "\0", "#")


class PathKind(enum.Enum):
    """What the router does with a request, by its method and path."""

    HEALTH = "health"
    LIVE = "live"
    METRICS = "metrics"
    MODELS = "models"
    MODEL = "model"
    ANY = "any"
    """Forward to any replica: the request does not depend on a model."""
    SEARCH = "search"
    """Ask the replicas in turn: one of them holds the object, and it is not known which."""
    UPGRADE = "upgrade"
    """Tunnel a WebSocket to one replica until either side closes it."""
    CHOOSE = "choose"
    """Forward to the replica chosen for the model and prompt in the body."""
    ONE_REPLICA = "one_replica"
    """Refuse: the request is meant for one particular replica."""
    NONE = "none"
    """Refuse: nothing is served at this path."""


_LOCAL: Final = {
    "/health": PathKind.HEALTH,
    "/ping": PathKind.HEALTH,
    "/livez": PathKind.LIVE,
    "/metrics": PathKind.METRICS,
    "/v1/models": PathKind.MODELS,
    "/version": PathKind.ANY,
}


def kind(method: str, path: str) -> PathKind:
    """Classify a request; `path` is percent-decoded and has no query."""
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
    """Return the model named in the target's query, or an empty string."""
    return parse_qs(target.partition("?")[2]).get("model", [""])[-1]


def replica_target(target: str) -> str:
    """Return the target to send to the engine: `/completions` becomes `/v1/completions`."""
    path = target.partition("?")[0]
    return f"/v1{target}" if path in _SHORT else target
