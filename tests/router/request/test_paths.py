import pytest

from kvtier.router.request.paths import PathKind, kind, model_of, replica_target


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/chat/completions", PathKind.CHOOSE),
        ("POST", "/v1/completions", PathKind.CHOOSE),
        ("POST", "/v1/embeddings", PathKind.CHOOSE),
        ("POST", "/v1/responses", PathKind.CHOOSE),
        ("POST", "/v1/messages", PathKind.CHOOSE),
        ("POST", "/v1/audio/transcriptions", PathKind.CHOOSE),
        ("POST", "/v1/what/next/year/brings", PathKind.CHOOSE),
        ("POST", "/completions", PathKind.CHOOSE),
        ("POST", "/tokenize", PathKind.CHOOSE),
        ("POST", "/detokenize", PathKind.CHOOSE),
        ("POST", "/score", PathKind.CHOOSE),
        ("POST", "/rerank", PathKind.CHOOSE),
        ("POST", "/v2/rerank", PathKind.CHOOSE),
        ("GET", "/version", PathKind.ANY),
        ("GET", "/v1/models", PathKind.MODELS),
        ("GET", "/v1/models/org/name", PathKind.MODEL),
        ("GET", "/v1/responses/r1", PathKind.SEARCH),
        ("POST", "/v1/responses/r1/cancel", PathKind.SEARCH),
        ("GET", "/health", PathKind.HEALTH),
        ("GET", "/livez", PathKind.LIVE),
        ("GET", "/metrics", PathKind.METRICS),
        ("POST", "/v1/load_lora_adapter", PathKind.ONE_REPLICA),
        ("POST", "/cohere/v2/chat", PathKind.CHOOSE),
        ("GET", "/v1/realtime", PathKind.UPGRADE),
    ],
)
def test_kind_classifies_paths(method: str, path: str, expected: PathKind) -> None:
    assert kind(method, path) is expected


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/metrics"),
        ("POST", "/v1/realtime"),
        ("POST", "/v1/load_lora_adapter#x"),
        ("POST", "/v1/completions#x"),
        ("GET", "/completions"),
        ("POST", "/sleep"),
        ("POST", "/collective_rpc"),
        ("POST", "/reset_prefix_cache"),
        ("GET", "/server_info"),
        ("POST", "/v1/models"),
        ("PUT", "/v1/completions"),
        ("POST", "/v1/../sleep"),
        ("POST", "/v1//load_lora_adapter"),
        ("POST", "/v1/./load_lora_adapter"),
        ("POST", "/v1/x\\..\\sleep"),
        ("POST", "/v1/\0"),
        ("GET", "/v1"),
        ("GET", "/"),
        ("CONNECT", "/v1/completions"),
    ],
)
def test_kind_refuses_operator_and_ambiguous_paths(method: str, path: str) -> None:
    assert kind(method, path) is PathKind.NONE


def test_short_paths_gain_the_v1_prefix() -> None:
    assert replica_target("/completions?a=b") == "/v1/completions?a=b"
    assert replica_target("/chat/completions") == "/v1/chat/completions"
    assert replica_target("/v1/completions") == "/v1/completions"
    assert replica_target("/tokenize") == "/tokenize"


def test_model_of_reads_the_query() -> None:
    assert model_of("/v1/realtime?x=1&model=org%2Fm") == "org/m"
    assert model_of("/v1/realtime?model=") == ""
    assert model_of("/v1/realtime") == ""
