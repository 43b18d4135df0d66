from kvtier.router.request.message import Fields
from kvtier.router.route import forwarding


def of(*pairs: tuple[str, str]) -> Fields:
    """Return headers as the parser returns them."""
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs]


def test_hop_by_hop_headers_are_removed() -> None:
    given = of(
        ("Host", "h"),
        ("Connection", "close, X-Hop"),
        ("X-Hop", "1"),
        ("Transfer-Encoding", "chunked"),
        ("Content-Length", "5"),
        ("Upgrade", "h2c"),
        ("TE", "trailers"),
        ("Proxy-Authorization", "x"),
        ("Content-Type", "application/json"),
        ("Accept", "a"),
        ("Accept", "b"),
    )
    assert forwarding.replica_headers(given, "id", None, keeps_key=True) == of(
        ("content-type", "application/json"),
        ("accept", "a"),
        ("accept", "b"),
        ("x-request-id", "id"),
    )


def test_destination_headers_of_client_are_removed() -> None:
    given = of(
        ("X-Gateway-Destination-Endpoint", "10.0.0.9:80"),
        ("x-gateway-destination-endpoint-subset", "10.0.0.9:80"),
        ("target-pod", "10.0.0.9:80"),
        ("Target-Pod-IP", "10.0.0.9"),
        ("routing-strategy", "random"),
        ("X-Envoy-Original-Dst-Host", "10.0.0.9:80"),
        ("x-prefiller-host-port", "10.0.0.9:80"),
        ("X-Data-Parallel-Rank", "3"),
        ("test-epp-endpoint-selection", "10.0.0.9"),
        ("x-gateway-model-name-rewrite", "other"),
        ("X-Session-Id", "s"),
    )
    assert forwarding.replica_headers(given, "id", None, keeps_key=True) == of(
        ("x-session-id", "s"), ("x-request-id", "id")
    )


def test_client_key_is_passed_on_only_without_router_keys() -> None:
    given = of(("Authorization", "Bearer c"), ("x-api-key", "c"))
    identity = of(("x-request-id", "id"))
    assert forwarding.replica_headers(given, "id", None, keeps_key=True) == given + identity
    assert forwarding.replica_headers(given, "id", None, keeps_key=False) == identity
    replaced = forwarding.replica_headers(given, "id", "r", keeps_key=True)
    assert replaced == identity + of(("authorization", "Bearer r"))


def test_request_id_is_kept_if_valid_else_replaced() -> None:
    assert forwarding.request_id(of(("X-Request-Id", "abc-1"))) == "abc-1"
    for bad in ("", "a b", "x" * 129, "\u00e4", "a\x7f"):
        made = forwarding.request_id(of(("X-Request-Id", bad)))
        assert made != bad
        assert len(made) == 32
    assert forwarding.request_id(of()) != forwarding.request_id(of())


def test_client_headers_keep_replica_headers_and_replace_router_headers() -> None:
    given = of(
        ("Content-Type", "text/event-stream"),
        ("Content-Length", "5"),
        ("Keep-Alive", "timeout=5"),
        ("target-pod", "elsewhere"),
        ("request-id", "x"),
        ("Set-Cookie", "a"),
        ("Set-Cookie", "b"),
        ("Connection", "close"),
    )
    assert forwarding.client_headers(given, {"target-pod": "here"}) == of(
        ("content-type", "text/event-stream"),
        ("set-cookie", "a"),
        ("set-cookie", "b"),
        ("target-pod", "here"),
    )
    assert forwarding.client_headers(given, {"Set-Cookie": "c"})[-1:] == [(b"set-cookie", b"c")]
    assert len(forwarding.client_headers(given, {"Set-Cookie": "c"})) == 2


def test_plain_headers_have_lower_case_names() -> None:
    assert forwarding.plain_headers(of(("X-Session-Id", "S"))) == {"x-session-id": "S"}
