"""The router's own settings: defaults < YAML file < `KVTIER_ROUTE_` variables < flags.

Why apart from the tree of `settings`: that one is an engine's. Each row is made from the struct
below, with the parsers of the tree, so a new field is a new flag, variable and key.
Invariant: nothing unknown is ignored, and every error names flag, variable, or file and line.
"""

import difflib
import os
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from kvtier.errors import InvalidSettings
from kvtier.settings.document import read_document
from kvtier.settings.options import Option
from kvtier.settings.tree import About, SettingKind

_SECTION: Final = "route"
PREFIX: Final = "KVTIER_ROUTE_"
CONFIG: Final = f"{PREFIX}CONFIG"
API_KEY: Final = f"{PREFIX}API_KEY"
REPLICA_KEY: Final = f"{PREFIX}REPLICA_KEY"
# What Kubernetes sets for a service called kvtier-route.
_SERVICE_LINKS: Final = ("tcp://", "udp://")
_SERVICE_VARIABLES: Final = (f"{PREFIX}SERVICE_", f"{PREFIX}PORT_")

# Flags of the command that choose and find replicas: no settings of the router's own.
FLAGS_ONLY: Final = (
    *("replica", "profile", "strategy", "tokenizer"),
    *("pool_name", "pool_namespace", "pool_group", "selector", "target_port"),
)

_File = str | None


class RouteOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Durations are seconds and sizes are bytes here."""

    host: Annotated[
        str, About(SettingKind.URL, "Address to listen on; 0.0.0.0 for all of IPv4.", "127.0.0.1")
    ] = "127.0.0.1"
    port: Annotated[
        int, About(SettingKind.COUNT, "Port to listen on; 0 takes a free one.", "30080")
    ] = 8080
    replicas: Annotated[
        _File,
        About(SettingKind.FILE, "YAML file of replicas; re-read when it changes.", "replicas.yaml"),
    ] = None
    evictor_events: Annotated[
        str | None,
        About(
            SettingKind.URL,
            "Where `kvtier evict --events` publishes what it removes from shared storage; several "
            "with commas between them.",
            "tcp://evictor:5559",
        ),
    ] = None
    api_keys: Annotated[
        _File, About(SettingKind.FILE, "Keys that clients may show, one a line.", "keys.txt")
    ] = None
    replica_key: Annotated[
        _File, About(SettingKind.FILE, "File with the key that replicas are shown.", "replica.key")
    ] = None
    tls_certificate: Annotated[
        _File, About(SettingKind.FILE, "Certificate chain of the router (PEM).", "router.pem")
    ] = None
    tls_key: Annotated[_File, About(SettingKind.FILE, "Its private key (PEM).", "router.key")] = (
        None
    )
    replica_ca: Annotated[
        _File,
        About(SettingKind.FILE, "Authorities that https replicas are checked by (PEM).", "ca.pem"),
    ] = None
    in_flight: Annotated[
        int, About(SettingKind.COUNT, "Requests a replica gets at once; 0 for no limit.", "256")
    ] = 0
    queue: Annotated[
        int,
        About(
            SettingKind.COUNT, "Requests that wait while all replicas are at their limit.", "1024"
        ),
    ] = 1024
    queue_timeout: Annotated[float, About(SettingKind.DURATION, "How long one waits.", "30s")] = (
        30.0
    )
    resends: Annotated[
        int,
        About(
            SettingKind.COUNT,
            "How often a request may go to another replica after one took it and died. Replicas "
            "that cannot be reached, or are busy, do not count.",
            "1",
        ),
    ] = 1
    connect_timeout: Annotated[
        float, About(SettingKind.DURATION, "For a connection to a replica.", "3s", 0.001)
    ] = 3.0
    first_byte_timeout: Annotated[
        float, About(SettingKind.DURATION, "Until the answer begins; 0 for no limit.", "10m")
    ] = 600.0
    idle_timeout: Annotated[
        float,
        About(SettingKind.DURATION, "Without a byte of an answer passing; 0 for no limit.", "5m"),
    ] = 300.0
    max_body: Annotated[int, About(SettingKind.SIZE, "Largest body of a request.", "64MiB")] = (
        64 << 20
    )
    head_timeout: Annotated[
        float, About(SettingKind.DURATION, "For a request's headers to arrive.", "10s", 0.001)
    ] = 10.0
    body_timeout: Annotated[
        float, About(SettingKind.DURATION, "For its body to arrive.", "60s", 0.001)
    ] = 60.0
    keep_alive: Annotated[
        float,
        About(SettingKind.DURATION, "How long an idle client's connection is kept.", "75s", 0.001),
    ] = 75.0
    health_interval: Annotated[
        float, About(SettingKind.DURATION, "Between two health checks of a replica.", "2s", 0.01)
    ] = 2.0
    health_timeout: Annotated[
        float, About(SettingKind.DURATION, "For a health check to be answered.", "2s", 0.01)
    ] = 2.0
    drain: Annotated[
        float,
        About(
            SettingKind.DURATION,
            "Serve so long after being told to stop, while /health says 503.",
            "10s",
        ),
    ] = 5.0
    drain_timeout: Annotated[
        float, About(SettingKind.DURATION, "For requests to end after that.", "30s")
    ] = 30.0
    explain: Annotated[
        Literal["never", "asked", "always"],
        About(
            SettingKind.CHOICE,
            "Tell the decision in the header x-kvtier-decision: to those that ask with "
            "x-kvtier-explain, or always.",
            "asked",
        ),
    ] = "never"
    decisions: Annotated[
        _File,
        About(SettingKind.FILE, "Log of decisions, for `kvtier route replay`.", "decisions.jsonl"),
    ] = None


class RouteOption(Option, frozen=True):
    """One setting."""

    @property
    def name(self) -> str:
        """As in files: `drain_timeout`."""
        return self.field

    @property
    def flag(self) -> str:
        """`--drain-timeout`."""
        return f"--{self.field}".replace("_", "-")


def _rows() -> tuple[RouteOption, ...]:
    hints = typing.get_type_hints(RouteOptions, include_extras=True)
    rows = []
    for field in msgspec.structs.fields(RouteOptions):
        plain, about = typing.get_args(hints[field.name])
        choices = typing.get_args(plain) if typing.get_origin(plain) is Literal else ()
        rows.append(RouteOption(_SECTION, field.name, about, field.default, choices))
    return tuple(rows)


ROWS: Final = _rows()
_BY_NAME: Final = {row.name: row for row in ROWS}
_BY_VARIABLE: Final = {row.variable: row for row in ROWS}
_BY_FLAG: Final = {row.flag: row for row in ROWS}


def load(
    flags: Mapping[str, str], env: Mapping[str, str] = os.environ, file: str | None = None
) -> RouteOptions:
    """Complete settings. `flags` maps `--port` to its text. Raises InvalidSettings."""
    values: dict[str, Any] = {}
    path = file or env.get(CONFIG)
    if path:
        document = read_document(path, "--config" if file else CONFIG, "port: 30080")
        for name, value in document.data.items():
            where = document.where((name,))
            row = _known(name, _BY_NAME, where)
            values[row.field] = row.parse(value, f"{where}: {name}")
    for name in sorted(env):
        if name.startswith(PREFIX) and not _is_foreign(name, env[name]):
            row = _known(name, _BY_VARIABLE, "environment")
            values[row.field] = row.parse(env[name], name)
    for name, text in flags.items():
        row = _known(name, _BY_FLAG, "flags")
        values[row.field] = row.parse(text, name)
    options = RouteOptions(**values)
    _judge(options)
    return options


def _judge(options: RouteOptions) -> None:
    """What only several of them together can have wrong."""
    if options.port > 65535:
        raise InvalidSettings(f"--port: {options.port} is no port")
    if (options.tls_certificate is None) != (options.tls_key is None):
        raise InvalidSettings("--tls-certificate and --tls-key go together: give both, or neither")


def _is_foreign(name: str, value: str) -> bool:
    """Whether it is no setting: read elsewhere, or put there by Kubernetes."""
    if name in (CONFIG, API_KEY, REPLICA_KEY):
        return True
    return name.startswith(_SERVICE_VARIABLES) or value.startswith(_SERVICE_LINKS)


def _known(name: object, rows: Mapping[str, RouteOption], where: str) -> RouteOption:
    found = rows.get(str(name))
    if found is None:
        plain = str(name).removeprefix(PREFIX).lower().replace("-", "_")
        if plain in FLAGS_ONLY:
            flag = f"--{plain}".replace("_", "-")
            raise InvalidSettings(f"{where}: {name} is a flag only: {flag}")
        close = difflib.get_close_matches(str(name), rows, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(rows)}"
        raise InvalidSettings(f"{where}: unknown setting {name!r}; {hint}")
    return found


def flags_of(given: Mapping[str, str | None]) -> dict[str, str]:
    """A command's parameters -> flags, those that were given."""
    return {f"--{name}".replace("_", "-"): text for name, text in given.items() if text is not None}
