"""The settings of `kvtier route`: defaults < YAML file < `KVTIER_ROUTE_` variables < flags.

They are separate from the tree in `settings`, which has the settings of engines. Flags, variables
and keys are derived from the struct below, with the parsers of that tree, so a new field is a new
flag, variable and key. Invariant: nothing unknown is ignored, and every error names the flag, the
variable, or the file and line.
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
# Kubernetes sets such variables for a service named kvtier-route.
_SERVICE_LINKS: Final = ("tcp://", "udp://")
_SERVICE_VARIABLES: Final = (f"{PREFIX}SERVICE_", f"{PREFIX}PORT_")

# Flags of the command that find and choose replicas. They have no variable and no key.
FLAGS_ONLY: Final = (
    *("replica", "profile", "strategy", "tokenizer"),
    *("pool_name", "pool_namespace", "pool_group", "selector", "target_port"),
)

_File = str | None


class RouteOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of the router. Durations are in seconds, sizes in bytes."""

    host: Annotated[
        str,
        About(
            SettingKind.URL, "Address to listen on; 0.0.0.0 means all IPv4 addresses.", "127.0.0.1"
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, About(SettingKind.COUNT, "Port to listen on; 0 takes a free one.", "30080")
    ] = 8080
    replicas: Annotated[
        _File,
        About(
            SettingKind.FILE,
            "YAML file that lists the replicas; it is read again when it changes.",
            "replicas.yaml",
        ),
    ] = None
    evictor_events: Annotated[
        str | None,
        About(
            SettingKind.URL,
            "ZeroMQ endpoints at which `kvtier evict --events` publishes the blocks that it "
            "removes from shared storage, separated by commas.",
            "tcp://evictor:5559",
        ),
    ] = None
    api_keys: Annotated[
        _File,
        About(
            SettingKind.FILE,
            "File with the API keys that clients may use, one per line.",
            "keys.txt",
        ),
    ] = None
    replica_key: Annotated[
        _File,
        About(
            SettingKind.FILE,
            "File with the API key that the router sends to replicas.",
            "replica.key",
        ),
    ] = None
    tls_certificate: Annotated[
        _File,
        About(
            SettingKind.FILE, "File with the certificate chain of the router (PEM).", "router.pem"
        ),
    ] = None
    tls_key: Annotated[
        _File,
        About(
            SettingKind.FILE, "File with the private key of that certificate (PEM).", "router.key"
        ),
    ] = None
    replica_ca: Annotated[
        _File,
        About(
            SettingKind.FILE,
            "File with the authorities that sign the certificates of https replicas (PEM).",
            "ca.pem",
        ),
    ] = None
    in_flight: Annotated[
        int,
        About(
            SettingKind.COUNT,
            "Largest number of concurrent requests per replica; 0 means no limit.",
            "256",
        ),
    ] = 0
    queue: Annotated[
        int,
        About(
            SettingKind.COUNT,
            "Largest number of requests that wait while all replicas are at --in-flight.",
            "1024",
        ),
    ] = 1024
    queue_timeout: Annotated[
        float, About(SettingKind.DURATION, "How long a request waits in that queue.", "30s")
    ] = 30.0
    resends: Annotated[
        int,
        About(
            SettingKind.COUNT,
            "How often a request is sent to another replica after one took it and disconnected. "
            "Replicas that cannot be reached, or are busy, do not count.",
            "1",
        ),
    ] = 1
    connect_timeout: Annotated[
        float,
        About(
            SettingKind.DURATION, "Time limit for opening a connection to a replica.", "3s", 0.001
        ),
    ] = 3.0
    first_byte_timeout: Annotated[
        float,
        About(
            SettingKind.DURATION,
            "Time limit until a replica's answer begins; 0 means no limit.",
            "10m",
        ),
    ] = 600.0
    idle_timeout: Annotated[
        float,
        About(
            SettingKind.DURATION,
            "Time limit between two bytes of an answer; 0 means no limit.",
            "5m",
        ),
    ] = 300.0
    max_body: Annotated[
        int, About(SettingKind.SIZE, "Largest body of a client's request.", "64MiB")
    ] = 64 << 20
    head_timeout: Annotated[
        float,
        About(
            SettingKind.DURATION,
            "Time limit for the headers of a client's request to arrive.",
            "10s",
            0.001,
        ),
    ] = 10.0
    body_timeout: Annotated[
        float,
        About(
            SettingKind.DURATION,
            "Time limit for the body of a client's request to arrive.",
            "60s",
            0.001,
        ),
    ] = 60.0
    keep_alive: Annotated[
        float,
        About(
            SettingKind.DURATION,
            "How long an idle connection of a client stays open.",
            "75s",
            0.001,
        ),
    ] = 75.0
    health_interval: Annotated[
        float,
        About(SettingKind.DURATION, "Time between two health checks of a replica.", "2s", 0.01),
    ] = 2.0
    health_timeout: Annotated[
        float,
        About(SettingKind.DURATION, "Time limit for the answer to a health check.", "2s", 0.01),
    ] = 2.0
    drain: Annotated[
        float,
        About(
            SettingKind.DURATION,
            "How long to serve after SIGTERM while /health answers 503, so that load balancers "
            "send their requests elsewhere.",
            "10s",
        ),
    ] = 5.0
    drain_timeout: Annotated[
        float,
        About(
            SettingKind.DURATION, "Time limit for requests in progress to end after --drain.", "30s"
        ),
    ] = 30.0
    explain: Annotated[
        Literal["never", "asked", "always"],
        About(
            SettingKind.CHOICE,
            "When to explain the choice of the replica in the response header x-kvtier-decision: "
            "never, if the request has a header x-kvtier-explain, or always.",
            "asked",
        ),
    ] = "never"
    decisions: Annotated[
        _File,
        About(
            SettingKind.FILE,
            "File to which every decision is appended, for `kvtier route replay`.",
            "decisions.jsonl",
        ),
    ] = None


class RouteOption(Option, frozen=True):
    """A setting of the router."""

    @property
    def name(self) -> str:
        """The key in files, such as `drain_timeout`."""
        return self.field

    @property
    def flag(self) -> str:
        """The flag, such as `--drain-timeout`."""
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
    """Return the complete settings; `flags` maps `--port` to its text. Raises InvalidSettings."""
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
    """Raise InvalidSettings for values that are invalid only together or for this command."""
    if options.port > 65535:
        raise InvalidSettings(f"--port: {options.port} is not a port; write a number up to 65535")
    if (options.tls_certificate is None) != (options.tls_key is None):
        raise InvalidSettings("--tls-certificate and --tls-key belong together: give both or none")


def _is_foreign(name: str, value: str) -> bool:
    """Return True for variables that are not settings: read elsewhere, or set by Kubernetes."""
    if name in (CONFIG, API_KEY, REPLICA_KEY):
        return True
    return name.startswith(_SERVICE_VARIABLES) or value.startswith(_SERVICE_LINKS)


def _known(name: object, rows: Mapping[str, RouteOption], where: str) -> RouteOption:
    found = rows.get(str(name))
    if found is None:
        plain = str(name).removeprefix(PREFIX).lower().replace("-", "_")
        if plain in FLAGS_ONLY:
            flag = f"--{plain}".replace("_", "-")
            raise InvalidSettings(f"{where}: {name} can only be set by the flag {flag}")
        close = difflib.get_close_matches(str(name), rows, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(rows)}"
        raise InvalidSettings(f"{where}: unknown setting {name!r}; {hint}")
    return found


def flags_of(given: Mapping[str, str | None]) -> dict[str, str]:
    """Return the flags that were given, with their texts, from a command's parameters."""
    return {f"--{name}".replace("_", "-"): text for name, text in given.items() if text is not None}
