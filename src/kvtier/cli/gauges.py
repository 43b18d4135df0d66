"""Flags for the names of the replicas' gauges, as in the Gateway API Inference Extension."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from kvtier.errors import InvalidSettings
from kvtier.router.learn.gauges import GaugeNames, prepend

_Command = TypeVar("_Command", bound=Callable[..., Any])

_WAITING: Final = "--total-queued-requests-metric"
_RUNNING: Final = "--total-running-requests-metric"
_USAGE: Final = "--kv-cache-usage-percentage-metric"
_PATH: Final = "--model-server-metrics-path"
_OPTIONS: Final = (
    click.option(
        _WAITING,
        metavar="NAME",
        help="Gauge of waiting requests, as NAME or NAME{label=value}.  [the engine's own]",
    ),
    click.option(_RUNNING, metavar="NAME", help="Gauge of running requests."),
    click.option(_USAGE, metavar="NAME", help="Gauge of the KV cache usage, 0 to 1."),
    click.option(_PATH, metavar="PATH", help="Path of the replicas' metrics.  [/metrics]"),
)


def gauge_flags(command: _Command) -> _Command:
    """Add the flags to a command, which passes their values to `gauges`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def gauges(flags: Mapping[str, Any], usual: GaugeNames) -> GaugeNames:
    """Return the names in the flags, followed by the usual ones. Raises InvalidSettings."""
    path = usual.path if flags[_parameter(_PATH)] is None else flags[_parameter(_PATH)].strip('"')
    if not path.startswith("/"):
        raise InvalidSettings(f"{_PATH}: {path!r} is not a path; write /metrics")
    return GaugeNames(
        waiting=_named(flags, _WAITING, usual.waiting),
        running=_named(flags, _RUNNING, usual.running),
        usage=_named(flags, _USAGE, usual.usage),
        path=path,
    )


def _named(flags: Mapping[str, Any], flag: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return prepend(flags[_parameter(flag)], usual)
    except ValueError as error:
        raise InvalidSettings(f"{flag}: {error}") from error


def _parameter(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
