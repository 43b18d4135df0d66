from multidict import CIMultiDict, CIMultiDictProxy

from kvtier.router.http import headers


def of(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(pairs))


def test_what_belongs_to_one_connection_stays_there() -> None:
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
    assert list(headers.to_replica(given, "id", None, keeps_key=True).items()) == [
        ("Content-Type", "application/json"),
        ("Accept", "a"),
        ("Accept", "b"),
        ("x-request-id", "id"),
    ]


def test_a_client_cannot_say_where_its_request_goes() -> None:
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
    assert dict(headers.to_replica(given, "id", None, keeps_key=True)) == {
        "X-Session-Id": "s",
        "x-request-id": "id",
    }


def test_the_clients_key_goes_on_only_where_it_was_not_for_the_router() -> None:
    given = of(("Authorization", "Bearer c"), ("x-api-key", "c"))
    kept = headers.to_replica(given, "id", None, keeps_key=True)
    assert (kept["Authorization"], kept["x-api-key"]) == ("Bearer c", "c")
    assert "Authorization" not in headers.to_replica(given, "id", None, keeps_key=False)
    replaced = headers.to_replica(given, "id", "r", keeps_key=True)
    assert replaced.getall("Authorization") == ["Bearer r"]
    assert "x-api-key" not in replaced


def test_a_plain_request_id_is_kept_and_any_other_is_replaced() -> None:
    assert headers.request_id(of(("X-Request-Id", "abc-1"))) == "abc-1"
    for bad in ("", "a b", "x" * 129, "\u00e4", "a\x7f"):
        made = headers.request_id(of(("X-Request-Id", bad)))
        assert made != bad
        assert len(made) == 32
    assert headers.request_id(of()) != headers.request_id(of())


def test_an_answer_keeps_what_is_the_replicas_and_loses_what_is_ours() -> None:
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
    assert list(headers.to_client(given).items()) == [
        ("Content-Type", "text/event-stream"),
        ("Set-Cookie", "a"),
        ("Set-Cookie", "b"),
    ]


def test_for_choosing_names_are_in_lower_case() -> None:
    assert headers.plain(of(("X-Session-Id", "S"))) == {"x-session-id": "S"}
