from typing import Any

import pytest
import yaml

from kvtier.errors import InvalidSettings
from kvtier.router.epp import messages
from kvtier.router.epp.envoy import Address, EnvoySettings, bootstrap, render


def envoy_settings(**fields: Any) -> EnvoySettings:
    usual = {
        "listen": Address("127.0.0.1", 8080),
        "picker": Address("127.0.0.1", 9002),
        "replicas": [Address("127.0.0.1", 8000), Address("::1", 8001)],
    }
    return EnvoySettings(**{**usual, **fields})


def manager(config: dict[str, Any]) -> dict[str, Any]:
    (listener,) = config["static_resources"]["listeners"]
    found: dict[str, Any] = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def picker(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["static_resources"]["clusters"][1]
    return found


def test_render_is_deterministic_yaml() -> None:
    text = render(envoy_settings())
    assert yaml.safe_load(text) == bootstrap(envoy_settings())
    assert text == render(envoy_settings())


def test_override_host_reads_only_metadata() -> None:
    config = bootstrap(envoy_settings())
    policy = config["static_resources"]["clusters"][0]["load_balancing_policy"]["policies"][0]
    sources = policy["typed_extension_config"]["typed_config"]["override_host_sources"]
    assert sources == [{"metadata": {"key": messages.LB, "path": [{"key": messages.DESTINATION}]}}]
    early = manager(config)["early_header_mutation_extensions"][0]["typed_config"]["mutations"]
    assert {"remove": messages.DESTINATION} in early


def test_picker_cluster_is_health_checked_and_fails_open() -> None:
    cluster = picker(bootstrap(envoy_settings()))
    assert cluster["common_lb_config"]["healthy_panic_threshold"]["value"] == 0
    assert "grpc_health_check" in cluster["health_checks"][0]
    ext_proc = manager(bootstrap(envoy_settings()))["http_filters"][0]["typed_config"]
    assert ext_proc["failure_mode_allow"] is True
    closed = manager(bootstrap(envoy_settings(fails_open=False)))["http_filters"][0]["typed_config"]
    assert closed["failure_mode_allow"] is False


def test_responses_are_shown_only_on_request() -> None:
    mode = manager(bootstrap(envoy_settings()))["http_filters"][0]["typed_config"][
        "processing_mode"
    ]
    assert mode["request_body_mode"] == "FULL_DUPLEX_STREAMED"
    assert (mode["response_header_mode"], mode["response_body_mode"]) == ("SKIP", "NONE")
    shown = manager(bootstrap(envoy_settings(shows_responses=True)))["http_filters"][0][
        "typed_config"
    ]
    assert shown["processing_mode"]["response_body_mode"] == "FULL_DUPLEX_STREAMED"
    assert shown["response_attributes"] == [messages.UPSTREAM_ADDRESS]


def test_picker_certificate_is_verified_with_ca() -> None:
    assert "transport_socket" not in picker(bootstrap(envoy_settings(is_secure=False)))
    own = picker(bootstrap(envoy_settings()))["transport_socket"]["typed_config"][
        "common_tls_context"
    ]
    assert "validation_context" not in own
    given = picker(bootstrap(envoy_settings(ca_path="ca.pem")))["transport_socket"]["typed_config"]
    assert given["common_tls_context"]["validation_context"] == {
        "trusted_ca": {"filename": "ca.pem"}
    }
    assert "sni" not in given


def test_picker_san_is_sent_and_verified() -> None:
    named = envoy_settings(ca_path="ca.pem", picker_san="picker.prod.svc")
    tls = picker(bootstrap(named))["transport_socket"]["typed_config"]
    matched = tls["common_tls_context"]["validation_context"]["match_typed_subject_alt_names"]
    assert matched == [{"san_type": "DNS", "matcher": {"exact": "picker.prod.svc"}}]
    assert tls["sni"] == "picker.prod.svc"
    for fields in ({}, {"ca_path": "ca.pem", "is_secure": False}):
        with pytest.raises(InvalidSettings, match="--picker-san"):
            bootstrap(envoy_settings(picker_san="picker.prod.svc", **fields))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("localhost:8000", "'localhost' is not an IP address; write 127.0.0.1:8000"),
        ("https://10.0.0.1:1", "not an IP address"),
        ("127.0.0.1", "not an address"),
        ("127.0.0.1:x", "not an address"),
        ("1.2.3.4:0", "1 to 65535"),
        ("", "not an address"),
    ],
)
def test_address_refuses_names_and_invalid_ports(text: str, said: str) -> None:
    with pytest.raises(InvalidSettings, match=f"--endpoint: .*{said}"):
        Address.parse(text, "--endpoint")


def test_picker_may_be_host_name() -> None:
    named = Address.parse("kvtier-epp.llm.svc:9002", "--picker", may_be_name=True)
    cluster = picker(bootstrap(envoy_settings(picker=named)))
    assert cluster["type"] == "STRICT_DNS"
    (lb,) = cluster["load_assignment"]["endpoints"]
    address = lb["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
    assert address == {"address": "kvtier-epp.llm.svc", "port_value": 9002}
    assert picker(bootstrap(envoy_settings()))["type"] == "STATIC"
    for text in ("https://10.0.0.1:9002", "-:9002", "a b:9002"):
        with pytest.raises(InvalidSettings, match="--picker"):
            Address.parse(text, "--picker", may_be_name=True)


def test_address_parses_ipv4_and_ipv6() -> None:
    assert Address.parse("[::1]:80", "") == Address("::1", 80)
    assert Address.parse("10.0.0.1:8000", "") == Address("10.0.0.1", 8000)
    assert Address.parse("http://10.0.0.1:8000", "") == Address("10.0.0.1", 8000)
    assert Address.parse("http://[::1]:8000/", "") == Address("::1", 8000)
    with pytest.raises(InvalidSettings):
        render(envoy_settings(replicas=[]))
