"""Translates the flags that deployments pass to other endpoint pickers.

The Helm charts of the Gateway API Inference Extension and of llm-d's router write the command line
of the picker; users can exchange its image and little else. The spellings are those of Go: one dash
or two, `--enable-pprof=false`, and camelCase until v0.5 (`-poolName`).
Invariants: a flag without effect causes one warning with the reason; a flag that asks for something
kvtier does not do is an error; click refuses unknown flags.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import click

from kvtier.errors import InvalidSettings

WARNINGS: Final = "kvtier.cli.inherited.warnings"
"""The key of the warnings in the click context's `meta`: a list of texts."""

_LOGS = "kvtier has one log format and logs at level info"
_METRICS = "metrics are computed when they are read"
_GATES = "none of them affects kvtier"

IGNORED: Final[Mapping[str, str]] = {
    "allow-experimental-plugins": _GATES,
    "cache-info-metric": "block sizes and capacities are read by vLLM's and SGLang's names",
    "emit-endpoint-scores": "the metadata contains no scores",
    "enable-cert-reload": "certificates are always read again when they change",
    "enable-grpc-stream-metrics": "streams are always counted",
    "enable-pprof": "kvtier has no such profiler",
    "fairness-id-header-key": "requests are not queued by tenant",
    "fairness-id-metric-label-limit": "requests are not queued by tenant",
    "feature-gates": _GATES,
    "grpc-max-recv-msg-size": "--max-body limits the size of requests",
    "grpc-max-send-msg-size": "--max-body limits the size of requests",
    "ha-enable-leader-election": "every picker is active and has its own index; run one of them",
    "health-checking": "health is always reported",
    "log-level": _LOGS,
    "lora-info-metric": "adapters are read from vllm:lora_requests_info",
    "metrics-endpoint-auth": "the metrics port has no authentication",
    "metrics-staleness-threshold": "set metricsStalenessThreshold of utilization-detector instead",
    "model-server-metrics-https-insecure-skip-verify": "metrics are read over plain HTTP",
    "plugin-state-staleness-threshold": "requests in flight are counted until they end",
    "refresh-metrics-interval": "metrics of replicas are read twice a second",
    "refresh-prometheus-metrics-interval": _METRICS,
    "tracing": "kvtier writes no traces",
    "v": _LOGS,
    "zap-devel": _LOGS,
    "zap-encoder": _LOGS,
    "zap-log-level": _LOGS,
    "zap-stacktrace-level": _LOGS,
    "zap-time-encoding": _LOGS,
}
"""Flags without effect -> the reason."""

_MET: Final = frozenset(
    {
        ("emit-endpoint-scores", "false"),
        ("enable-cert-reload", "true"),
        ("enable-grpc-stream-metrics", "true"),
        ("enable-pprof", "false"),
        ("ha-enable-leader-election", "false"),
        ("health-checking", "true"),
        ("lora-info-metric", "vllm:lora_requests_info"),
        ("metrics-endpoint-auth", "false"),
        ("model-server-metrics-https-insecure-skip-verify", "false"),
        ("tracing", "false"),
    }
)
"""Values of ignored flags that ask for what kvtier does anyway; they cause no warning."""

REFUSED: Final[Mapping[str, tuple[frozenset[str], str]]] = {
    "destination-endpoint-hint-key": (
        frozenset({"x-gateway-destination-endpoint"}),
        "the header is x-gateway-destination-endpoint",
    ),
    "destination-endpoint-hint-metadata-namespace": (
        frozenset({"envoy.lb"}),
        "the namespace of the metadata is envoy.lb",
    ),
    "disable-endpoint-subset-filter": (
        frozenset({"false"}),
        "an endpoint that the gateway does not allow is never picked",
    ),
    "metrics-cert-dir": (frozenset({""}), "the metrics port speaks plain HTTP"),
    "metrics-client-ca-file": (frozenset({""}), "the metrics port speaks plain HTTP"),
    "model-server-metrics-port": (
        frozenset({"", "0", "-1"}),
        "metrics are read at the port that takes the requests",
    ),
    "model-server-metrics-scheme": (frozenset({"", "http"}), "metrics are read over plain HTTP"),
    "tls-cipher-suites": (frozenset({""}), "the cipher suites are fixed"),
    "tls-min-version": (frozenset({"", "VersionTLS12"}), "the minimum version is TLS 1.2"),
}
"""Flags with supported values -> those values, and why no other value is supported."""

_SWITCHES: Final = frozenset(
    {
        "allow-experimental-plugins",
        "disable-endpoint-subset-filter",
        "emit-endpoint-scores",
        "enable-cert-reload",
        "enable-grpc-stream-metrics",
        "enable-pprof",
        "ha-enable-leader-election",
        "health-checking",
        "metrics-endpoint-auth",
        "model-server-metrics-https-insecure-skip-verify",
        "secure-serving",
        "tracing",
        "zap-devel",
    }
)
_TRUTH: Final = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), "true"),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), "false"),
}
"""The spellings of booleans that Go accepts."""

_OURS: Final[Mapping[str, Callable[[str], list[str]]]] = {
    "endpoint-selector": lambda text: ["--selector", text],
    "endpoint-target-ports": lambda text: ["--target-port", text],
    "drain-timeout": lambda text: ["--drain", text],
    "secure-serving": lambda text: [] if text == "true" else ["--insecure"],
    "cert-path": lambda text: (
        ["--tls-certificate", f"{text}/tls.crt", "--tls-key", f"{text}/tls.key"] if text else []
    ),
}
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Inheriting(click.Group):
    """A group that also understands the flags of other pickers; its subcommands do not."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the translated arguments. Raises InvalidSettings for unsupported values."""
        valued = {
            name: isinstance(option, click.Option) and not option.is_flag
            for option in self.get_params(ctx)
            for name in option.opts
        }
        warnings = ctx.meta.setdefault(WARNINGS, [])
        return super().parse_args(ctx, list(_translated(args, valued, warnings)))


def warnings(context: click.Context) -> Sequence[str]:
    """Return the warnings about ignored flags, one text per flag."""
    found: Sequence[str] = context.meta.get(WARNINGS, ())
    return found


def _translated(
    args: Sequence[str], valued: Mapping[str, bool], warned: list[str]
) -> Iterator[str]:
    """Yield the arguments in kvtier's own flags.

    `valued` maps kvtier's flags to whether they take a value; warnings are appended to `warned`.
    """
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word in ("-", "--"):
            yield from (word, *rest)  # a subcommand and its arguments
            return
        head, equals, value = word.partition("=")
        name = _canonical(head)
        if f"--{name}" in valued:
            yield f"--{name}{equals}{value}"
            if valued[f"--{name}"] and not equals and rest:
                yield rest.pop(0)
        elif name in _OURS or name in IGNORED or name in REFUSED:
            if not equals:
                value = _next(name, rest)
            yield from _meaning(name, _checked(name, value), warned)
        else:
            yield word


def _canonical(head: str) -> str:
    """Return the kebab-case name of a flag: `pool-name` for `-poolName` and `--pool-name`."""
    return _HUMP.sub("-", head.lstrip("-")).lower()


def _next(name: str, rest: list[str]) -> str:
    """Take the value of a flag from the next argument; a switch without one is true."""
    if name in _SWITCHES:
        return rest.pop(0) if rest and rest[0] in _TRUTH else "true"
    if not rest:
        raise InvalidSettings(f"--{name}: a value is missing")
    return rest.pop(0)


def _checked(name: str, value: str) -> str:
    if name not in _SWITCHES:
        return value
    if value not in _TRUTH:
        raise InvalidSettings(f"--{name}: {value!r} is neither true nor false")
    return _TRUTH[value]


def _meaning(name: str, value: str, warned: list[str]) -> list[str]:
    """Return kvtier's flags for a flag and its value. Raises InvalidSettings."""
    if name in _OURS:
        return _OURS[name](value)
    if name in REFUSED:
        met, why = REFUSED[name]
        if value not in met:
            raise InvalidSettings(f"--{name}: {value!r} is not supported: {why}; remove the flag")
    elif value and (name, value) not in _MET:
        text = f"--{name} is ignored: {IGNORED[name]}"
        if text not in warned:
            warned.append(text)
    return []
