"""Flags for what replicas call their gauges, as the Gateway API Inference Extension has them."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from kvtier.errors import InvalidSettings
from kvtier.router.ingest import names
from kvtier.router.ingest.names import Names

_Command = TypeVar("_Command", bound=Callable[..., Any])

_WAITING: Final = "--total-queued-requests-metric"
_RUNNING: Final = "--total-running-requests-metric"
_USAGE: Final = "--kv-cache-usage-percentage-metric"
_USUAL: Final = Names()
_PATH: Final = "--model-server-metrics-path"
_OPTIONS: Final = (
    click.option(
        _WAITING,
        metavar="NAME",
        help="Gauge of waiting requests, NAME or NAME{label=value}.  [the engine's own]",
    ),
    click.option(_RUNNING, metavar="NAME", help="Gauge of running requests."),
    click.option(_USAGE, metavar="NAME", help="Gauge of the KV cache in use, 0 to 1."),
    click.option(_PATH, default="/metrics", help="Where replicas have them.  [/metrics]"),
)


def gauge_flags(command: _Command) -> _Command:
    """Add them; the command hands what it gets to `gauges`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def gauges(flags: Mapping[str, Any]) -> Names:
    """The names that flags ask for, before those that engines have. Raises InvalidSettings."""
    path = flags[_parameter(_PATH)].strip('"')
    if not path.startswith("/"):
        raise InvalidSettings(f"{_PATH}: {path!r} is no path; write /metrics")
    return Names(
        waiting=_named(flags, _WAITING, _USUAL.waiting),
        running=_named(flags, _RUNNING, _USUAL.running),
        usage=_named(flags, _USAGE, _USUAL.usage),
        path=path,
    )


def _named(flags: Mapping[str, Any], flag: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return names.before(flags[_parameter(flag)], usual)
    except ValueError as error:
        raise InvalidSettings(f"{flag}: {error}") from error


def _parameter(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
