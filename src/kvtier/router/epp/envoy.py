"""An Envoy configuration that uses the endpoint picker, for machines without a gateway.

It gets right what is easy to get wrong: the override-host policy reads only the metadata that the
picker sets, never a header that a client may send; retries follow the picker's fallback list;
metadata is forwarded in both directions; and the picker's cluster is health-checked with a panic
threshold of 0, without which a dead picker in full duplex causes errors instead of failing open.
`render` is deterministic.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import yaml

from kvtier.errors import InvalidSettings
from kvtier.router.epp import messages

_TYPE: Final = "@type"
_V3: Final = "type.googleapis.com/envoy.extensions."
_PICKER: Final = "endpoint_picker"
_REPLICAS: Final = "replicas"
_SERVICE: Final = "envoy.service.ext_proc.v3.ExternalProcessor"
_NO_LIMIT: Final = "0s"

_PORT: Final = re.compile("[0-9]{1,5}")
_NAME: Final = re.compile("[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


class Address(msgspec.Struct, frozen=True):
    """An IP address or a host name, and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, where: str, *, may_be_name: bool = False) -> "Address":
        """Parse `127.0.0.1:8000` or `[::1]:8000`, with or without `http://`.

        `may_be_name` also allows host names. Replicas must be given by address: the picker names
        them so, and Envoy compares the two. Raises InvalidSettings, with `where` in the message.
        """
        host, _, port = text.strip().removeprefix("http://").removesuffix("/").rpartition(":")
        if not host or not _PORT.fullmatch(port):
            raise InvalidSettings(
                f"{where}: {text!r} is not an address; write 127.0.0.1:8000 or [::1]:8000"
            )
        if not 0 < int(port) < 1 << 16:
            raise InvalidSettings(f"{where}: {text!r}: the port must be 1 to 65535")
        address = cls(host.removeprefix("[").removesuffix("]"), int(port))
        if not address.is_ip and not (may_be_name and _NAME.fullmatch(host)):
            raise InvalidSettings(
                f"{where}: {host!r} is not an IP address; write 127.0.0.1:{port} or [::1]:{port}"
            )
        return address

    @property
    def is_ip(self) -> bool:
        """True if the host is an IP address and needs no lookup."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True


class EnvoySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What may differ between installations of Envoy."""

    listen: Address
    picker: Address
    replicas: Sequence[Address]
    admin: Address | None = None
    is_secure: bool = True
    """Whether the picker uses TLS."""
    ca_path: str | None = None
    """The CA that must have signed the picker's certificate; None does not verify it."""
    picker_san: str | None = None
    """The DNS name that the picker's certificate must be for; None accepts any name."""
    fails_open: bool = True
    """Whether requests go to the replica with the fewest requests if the picker is down."""
    is_buffered: bool = False
    """Whether Envoy buffers bodies, up to `max_body_bytes`, instead of streaming them both ways."""
    shows_responses: bool = False
    """Whether the picker sees responses; for a picker with `--observe-responses`."""
    retries: int = 2
    health_path: str = "/health"
    """The path of the replicas' health check; empty disables it."""
    max_body_bytes: int = 64 << 20


def render(settings: EnvoySettings) -> str:
    """Return the configuration as YAML for `envoy -c`. Raises InvalidSettings."""
    text: str = yaml.safe_dump(bootstrap(settings), sort_keys=False, width=100)
    return text


def bootstrap(settings: EnvoySettings) -> dict[str, Any]:
    """Return the configuration as data. Raises InvalidSettings."""
    if not settings.replicas:
        raise InvalidSettings("no replica is given; Envoy could not fail open")
    if settings.picker_san and not (settings.is_secure and settings.ca_path):
        raise InvalidSettings("--picker-san: checking the name needs --ca, and TLS")
    found: dict[str, Any] = {}
    if settings.admin is not None:
        found["admin"] = {"address": _socket(settings.admin)}
    found["static_resources"] = {
        "listeners": [
            {
                "name": "requests",
                "address": _socket(settings.listen),
                "per_connection_buffer_limit_bytes": settings.max_body_bytes,
                "filter_chains": [{"filters": [_connection_filter(settings)]}],
            }
        ],
        "clusters": [_replicas(settings), _picker(settings)],
    }
    return found


def ext_proc(settings: EnvoySettings) -> dict[str, Any]:
    """Return the ext_proc filter, which asks the picker."""
    body = "BUFFERED" if settings.is_buffered else "FULL_DUPLEX_STREAMED"
    shows = settings.shows_responses
    mode = {
        "request_header_mode": "SEND",
        "request_body_mode": body,
        # Full duplex requires trailers in the same direction.
        "request_trailer_mode": "SKIP" if settings.is_buffered else "SEND",
        "response_header_mode": "SEND" if shows else "SKIP",
        "response_body_mode": "FULL_DUPLEX_STREAMED" if shows else "NONE",
        "response_trailer_mode": "SEND" if shows else "SKIP",
    }
    config: dict[str, Any] = {
        "grpc_service": {"envoy_grpc": {"cluster_name": _PICKER}},
        "failure_mode_allow": settings.fails_open,
        "message_timeout": "60s",
        "processing_mode": mode,
        "metadata_options": {
            "receiving_namespaces": {"untyped": [messages.LB]},
            "forwarding_namespaces": {"untyped": [messages.LB, messages.SUBSET_HINT]},
        },
    }
    if shows:
        config["response_attributes"] = [messages.UPSTREAM_ADDRESS]
    return _extension(
        "envoy.filters.http.ext_proc", "filters.http.ext_proc.v3.ExternalProcessor", config
    )


def _connection_filter(settings: EnvoySettings) -> dict[str, Any]:
    retries = {
        # Only while the client has received nothing of an answer.
        "retry_on": "connect-failure,refused-stream,reset",
        "num_retries": settings.retries,
    }
    route = {
        "match": {"prefix": "/"},
        # Generation has no upper bound.
        "route": {"cluster": _REPLICAS, "timeout": _NO_LIMIT, "retry_policy": retries},
    }
    owned = [messages.DESTINATION, messages.SERVED, messages.SUBSET]
    config = {
        "stat_prefix": "requests",
        "codec_type": "AUTO",
        "stream_idle_timeout": "600s",
        # Applied before every filter, so that it also protects requests while the picker is down.
        "early_header_mutation_extensions": [
            _extension(
                "envoy.http.early_header_mutation.header_mutation",
                "http.early_header_mutation.header_mutation.v3.HeaderMutation",
                {"mutations": [{"remove": name} for name in owned]},
            )
        ],
        "route_config": {
            "name": "all",
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}],
        },
        "http_filters": [
            ext_proc(settings),
            _extension("envoy.filters.http.router", "filters.http.router.v3.Router", {}),
        ],
    }
    return _extension(
        "envoy.filters.network.http_connection_manager",
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        config,
    )


def _replicas(settings: EnvoySettings) -> dict[str, Any]:
    fallback = _extension(
        "envoy.load_balancing_policies.least_request",
        "load_balancing_policies.least_request.v3.LeastRequest",
        {},
    )
    path = [{"key": messages.DESTINATION}]
    override = _extension(
        "envoy.load_balancing_policies.override_host",
        "load_balancing_policies.override_host.v3.OverrideHost",
        {
            "override_host_sources": [{"metadata": {"key": messages.LB, "path": path}}],
            "fallback_policy": {"policies": [{"typed_extension_config": fallback}]},
        },
    )
    cluster = {
        **_cluster(_REPLICAS, settings.replicas),
        "per_connection_buffer_limit_bytes": settings.max_body_bytes,
        "load_balancing_policy": {"policies": [{"typed_extension_config": override}]},
    }
    if settings.health_path:
        check = {"http_health_check": {"path": settings.health_path}}
        cluster["health_checks"] = [{**_interval("5s"), "timeout": "4s", **check}]
    return cluster


def _picker(settings: EnvoySettings) -> dict[str, Any]:
    http2 = {"connection_keepalive": {"interval": "10s", "timeout": "5s"}}
    options = {
        _TYPE: f"{_V3}upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": http2},
    }
    check = {"grpc_health_check": {"service_name": _SERVICE}}
    cluster = {
        **_cluster(_PICKER, [settings.picker]),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        },
        "health_checks": [{**_interval("1s"), "timeout": "1s", **check}],
        # Without healthy hosts, streams fail before a body is sent, and Envoy fails open.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }
    if settings.is_secure:
        cluster["transport_socket"] = _extension(
            "envoy.transport_sockets.tls",
            "transport_sockets.tls.v3.UpstreamTlsContext",
            _tls(settings),
        )
    return cluster


def _tls(settings: EnvoySettings) -> dict[str, Any]:
    """Return the TLS settings of the picker's cluster."""
    common: dict[str, Any] = {"alpn_protocols": ["h2"]}
    if settings.ca_path:
        common["validation_context"] = {"trusted_ca": {"filename": settings.ca_path}}
    if not settings.picker_san:
        return {"common_tls_context": common}
    common["validation_context"]["match_typed_subject_alt_names"] = [
        {"san_type": "DNS", "matcher": {"exact": settings.picker_san}}
    ]
    return {"common_tls_context": common, "sni": settings.picker_san}


def _cluster(name: str, addresses: Sequence[Address]) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": _socket(address)}} for address in addresses]
    return {
        "name": name,
        "type": "STATIC" if all(one.is_ip for one in addresses) else "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    }


def _interval(text: str) -> dict[str, Any]:
    """Return the intervals of a health check, the same with and without traffic."""
    return {
        "interval": text,
        "no_traffic_interval": text,
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
    }


def _socket(address: Address) -> dict[str, Any]:
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _extension(name: str, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": name, "typed_config": {_TYPE: _V3 + kind, **config}}
