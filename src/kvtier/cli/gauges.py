"""Flags for what replicas call their gauges, as the Gateway API Inference Extension has them."""

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
        help="Gauge of waiting requests, NAME or NAME{label=value}.  [the engine's own]",
    ),
    click.option(_RUNNING, metavar="NAME", help="Gauge of running requests."),
    click.option(_USAGE, metavar="NAME", help="Gauge of the KV cache in use, 0 to 1."),
    click.option(_PATH, metavar="PATH", help="Where replicas have them.  [/metrics]"),
)


def gauge_flags(command: _Command) -> _Command:
    """Add them; the command hands what it gets to `gauges`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def gauges(flags: Mapping[str, Any], usual: GaugeNames) -> GaugeNames:
    """The names that flags ask for, before the usual ones. Raises InvalidSettings."""
    path = usual.path if flags[_parameter(_PATH)] is None else flags[_parameter(_PATH)].strip('"')
    if not path.startswith("/"):
        raise InvalidSettings(f"{_PATH}: {path!r} is no path; write /metrics")
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
