"""Flags that deployments pass to an endpoint picker today, and what they mean to ours.

Why: charts of the Gateway API Inference Extension and of llm-d's router write the command line of
the picker, in which an image can be exchanged and little else. Their spellings are Go's: one dash
or two, `--enable-pprof=false`, and camelCase until v0.5 (`-poolName`).
Invariants: what does nothing here is said, once, with the reason; what would be done otherwise
than was asked is one error; a flag that nobody knows is click's to refuse.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import click

from kvtier.errors import InvalidSettings

WARNINGS: Final = "kvtier.cli.inherited.warnings"
"""Key of the context's meta: a list of texts."""

_LOGS = "kvtier logs in one form, at level info"
_METRICS = "metrics are what they are when they are read"
_GATES = "none of them changes what kvtier does"

IGNORED: Final[Mapping[str, str]] = {
    "allow-experimental-plugins": _GATES,
    "cache-info-metric": "block sizes and capacities are read by vLLM's and SGLang's names",
    "emit-endpoint-scores": "no scores are put into the metadata",
    "enable-cert-reload": "certificates are read again whenever they change",
    "enable-grpc-stream-metrics": "streams are always counted",
    "enable-pprof": "there is no such profiler here",
    "fairness-id-header-key": "requests are not queued by tenant",
    "fairness-id-metric-label-limit": "requests are not queued by tenant",
    "feature-gates": _GATES,
    "grpc-max-recv-msg-size": "--max-body bounds what a request may hold",
    "grpc-max-send-msg-size": "--max-body bounds what a request may hold",
    "ha-enable-leader-election": "every picker chooses, with an index of its own; run one of them",
    "health-checking": "health is always told",
    "log-level": _LOGS,
    "lora-info-metric": "adapters are read from vllm:lora_requests_info",
    "metrics-endpoint-auth": "the metrics port asks nobody who they are",
    "metrics-staleness-threshold": "write metricsStalenessThreshold of utilization-detector",
    "model-server-metrics-https-insecure-skip-verify": "metrics are read in plain text",
    "plugin-state-staleness-threshold": "what is in flight is counted until it ends",
    "refresh-metrics-interval": "replicas are asked twice a second",
    "refresh-prometheus-metrics-interval": _METRICS,
    "tracing": "kvtier writes no traces",
    "v": _LOGS,
    "zap-devel": _LOGS,
    "zap-encoder": _LOGS,
    "zap-log-level": _LOGS,
    "zap-stacktrace-level": _LOGS,
    "zap-time-encoding": _LOGS,
}
"""Flag -> why nothing is lost without it."""

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
"""What is asked for is what is done: nothing to say."""

REFUSED: Final[Mapping[str, tuple[frozenset[str], str]]] = {
    "destination-endpoint-hint-key": (
        frozenset({"x-gateway-destination-endpoint"}),
        "the header is x-gateway-destination-endpoint",
    ),
    "destination-endpoint-hint-metadata-namespace": (
        frozenset({"envoy.lb"}),
        "the metadata's namespace is envoy.lb",
    ),
    "disable-endpoint-subset-filter": (
        frozenset({"false"}),
        "an endpoint that the gateway does not allow is never picked",
    ),
    "metrics-cert-dir": (frozenset({""}), "the metrics port speaks plain text"),
    "metrics-client-ca-file": (frozenset({""}), "the metrics port speaks plain text"),
    "model-server-metrics-port": (
        frozenset({"", "0", "-1"}),
        "metrics are read at the port that takes the requests",
    ),
    "model-server-metrics-scheme": (frozenset({"", "http"}), "metrics are read in plain text"),
    "tls-cipher-suites": (frozenset({""}), "the cipher suites are fixed"),
    "tls-min-version": (frozenset({"", "VersionTLS12"}), "the least version is TLS 1.2"),
}
"""Flag -> values that are met, and why no other is."""

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
"""As Go reads it."""

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
    """A group that understands such flags besides its own; not those of its subcommands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raises InvalidSettings."""
        valued = {
            name: isinstance(option, click.Option) and not option.is_flag
            for option in self.get_params(ctx)
            for name in option.opts
        }
        warnings = ctx.meta.setdefault(WARNINGS, [])
        return super().parse_args(ctx, list(_translated(args, valued, warnings)))


def warnings(context: click.Context) -> Sequence[str]:
    """What was ignored, one text a flag."""
    found: Sequence[str] = context.meta.get(WARNINGS, ())
    return found


def _translated(
    args: Sequence[str], valued: Mapping[str, bool], warned: list[str]
) -> Iterator[str]:
    """`valued`: our own options, and whether a value follows them."""
    rest = list(args)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word in ("-", "--"):
            yield from (word, *rest)  # a subcommand, and what is its own
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
    """`-poolName` and `--pool-name` are one."""
    return _HUMP.sub("-", head.lstrip("-")).lower()


def _next(name: str, rest: list[str]) -> str:
    """The value of a flag that has none of its own; a switch may be alone."""
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
    """Our own flags for it. Raises InvalidSettings."""
    if name in _OURS:
        return _OURS[name](value)
    if name in REFUSED:
        met, why = REFUSED[name]
        if value not in met:
            raise InvalidSettings(f"--{name}: {value!r} cannot be had: {why}; leave the flag out")
    elif value and (name, value) not in _MET:
        text = f"--{name} is ignored: {IGNORED[name]}"
        if text not in warned:
            warned.append(text)
    return []
