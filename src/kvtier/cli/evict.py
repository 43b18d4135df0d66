"""`kvtier evict`: keep a shared folder within its bounds, once or for ever."""

import logging
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click
from rich.console import Console

from kvtier.errors import InvalidSettings
from kvtier.evictor.announcing import EventAnnouncer
from kvtier.evictor.evictor import Evictor
from kvtier.evictor.metering import Meter, serve
from kvtier.evictor.opening import Wishes, open_place, read_options
from kvtier.evictor.progress import progress_on
from kvtier.evictor.publishing import Publisher
from kvtier.evictor.view import pass_view, summary_line
from kvtier.settings.compat import pvc_evictor
from kvtier.settings.compat.pvc_evictor import PvcEvictor
from kvtier.settings.sizes import parse_duration

_log = logging.getLogger("kvtier.evict")
_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"


class _Terminated(Exception):
    """Asked to stop, as by Kubernetes: not an error."""


@click.command(
    epilog="""\b
Examples:
  kvtier evict /mnt/kv --high 500GiB --low 450GiB
  kvtier evict /mnt/kv --high 85% --low 70% --once --dry-run
  kvtier evict s3://bucket/prefix --high 2TiB
  kvtier evict /mnt/kv --high 2TiB --quota Qwen3-8B-0123456789abcdef=200GiB --ttl 72h
  PVC_MOUNT_PATH=/kv-cache CLEANUP_THRESHOLD=85 TARGET_THRESHOLD=70 kvtier evict
"""
)
@click.argument("path", required=False)
@click.option("--high", metavar="SIZE|%", help="Above it, free space. `%` is of the file system.")
@click.option("--low", metavar="SIZE|%", help="Free down to it; 90% of --high if not given.")
@click.option("--high-inodes", metavar="N", help="The same for files and folders.")
@click.option("--low-inodes", metavar="N", help="The same for files and folders.")
@click.option("--quota", "quotas", multiple=True, metavar="FOLDER=SIZE", help="Of one model.")
@click.option("--ttl", metavar="DURATION", help="Remove what nobody wrote or read for so long.")
@click.option("--grace", default="60s", show_default=True, help="Keep what was used within it.")
@click.option("--policy", default="lru", show_default=True, help="Who goes first: lru, s3fifo, ...")
@click.option("--orphans", default="1h", show_default=True, help="Age of dead temporary files.")
@click.option("--lease", default="60s", show_default=True, help="After it a dead evictor is.")
@click.option("--sweep", default="1h", show_default=True, help="How often orphans are looked for.")
@click.option("--interval", default="30s", show_default=True, help="Between two passes.")
@click.option("--once", is_flag=True, help="One pass, then leave.")
@click.option("--dry-run", is_flag=True, help="Show what one pass would free; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON for each pass.")
@click.option("--files-per-second", type=float, help="Scan no faster.")
@click.option("--max-delete-per-second", "deletes_per_second", type=float, help="Remove no faster.")
@click.option("--check-headers", is_flag=True, help="Read the header of every segment, and count.")
@click.option("--sweep-broken", is_flag=True, help="Also move broken segments to quarantine.")
@click.option("--delete-unknown", is_flag=True, help="Remove files of no known layout too.")
@click.option("--key-file", type=click.Path(path_type=Path), help="The secret (shared.key_file).")
@click.option("--events", metavar="ENDPOINT", help="Tell routers what went: tcp://127.0.0.1:5559.")
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Prometheus, on 127.0.0.1.")
def evict(
    *,
    path: str | None,
    interval: str,
    once: bool,
    as_json: bool,
    events: str | None,
    metrics_port: int | None,
    **flags: Any,
) -> None:
    """Keep the shared folder or bucket PATH within its bounds.

    The coldest files go first, by what readers tell and not by access times. Any number of
    evictors may run, on any hosts: they share the work. vLLM's `fs` and llm-d's trees are known
    by their names. Without PATH, the variables of llm-d's PVC evictor are read.
    """
    theirs = pvc_evictor.read(os.environ) if path is None else None
    wishes = _wishes(path, theirs, flags)
    _log_to(theirs, verbose=not (once or wishes.dry_run))
    if theirs is not None and theirs.ignored:
        _log.warning("without effect here: %s", ", ".join(theirs.ignored))
    interval_s = parse_duration(interval, "--interval")
    if interval_s <= 0:
        raise InvalidSettings(f"--interval: {interval} would never rest; write 30s")
    events_from = "--events"
    if events is None and theirs is not None:
        events, events_from = theirs.events, pvc_evictor.EVENTS
    with ExitStack() as stack:
        place = open_place(wishes.path)
        stack.callback(place.store.close)
        options = read_options(wishes, place.measure())
        publisher = announcer = None
        if events is not None and not options.dry_run:
            publisher = Publisher(events, setting=events_from)
            stack.callback(publisher.close)
            announcer = EventAnnouncer(place.store, publisher, options, place.owner)
        evictor = Evictor(
            place.store,
            options,
            filesystem=place.filesystem,
            mounts=place.mounts,
            observer=stack.enter_context(progress_on(Console(stderr=True))),
            announcer=announcer,
        )
        evictor.check()
        meter = Meter(publisher=publisher, announcer=announcer)
        if metrics_port is not None:
            stack.enter_context(serve(meter, metrics_port))
        alone = once or options.dry_run
        _run(evictor, meter, None if alone else interval_s, as_json=as_json)


def _run(evictor: Evictor, meter: Meter, interval_s: float | None, *, as_json: bool) -> None:
    """Passes until told to stop; one where `interval_s` is None."""
    signal.signal(signal.SIGTERM, _terminate)
    # A shell that starts it in the background leaves Ctrl-C ignored; whoever sends it means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while True:
            try:
                report = evictor.run_once()
            except OSError as error:
                if interval_s is None:
                    raise click.ClickException(f"the store does not answer: {error}") from error
                _log.warning("the store does not answer: %s", error)
            else:
                meter.add(report)
                if as_json:
                    click.echo(report.to_json().decode())
                    sys.stdout.flush()
                elif interval_s is None:
                    Console().print(pass_view(report))
                else:
                    _log.info("%s", summary_line(report))
            if interval_s is None:
                return
            evictor.wait(interval_s)
    except _Terminated:
        _log.info("told to stop")
    finally:
        try:
            evictor.close()
        except OSError as error:
            _log.warning("leases end by themselves: %s", error)


def _terminate(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise _Terminated


def _wishes(path: str | None, theirs: PvcEvictor | None, flags: dict[str, Any]) -> Wishes:
    """Flags win over the other evictor's variables."""
    if theirs is None:
        if path is None:
            raise InvalidSettings(
                f"PATH: name the folder that engines share, or set {pvc_evictor.MOUNT}"
            )
        return Wishes(path=path, **flags)
    source = click.get_current_context().get_parameter_source("grace")
    if source is click.core.ParameterSource.DEFAULT:
        flags["grace"] = f"{theirs.grace_s}s"
    if flags["high"] is None and flags["low"] is None:
        flags["high"], flags["low"] = theirs.high, theirs.low
    flags["dry_run"] = flags["dry_run"] or theirs.dry_run
    return Wishes(path=theirs.path, sweep_foreign_folders=theirs.sweep_folders, **flags)


def _log_to(theirs: PvcEvictor | None, *, verbose: bool) -> None:
    """Lines on stderr; a daemon's tell of each pass."""
    level = theirs.log_level if theirs else ("INFO" if verbose else "WARNING")
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if theirs and theirs.log_file:
        try:
            handlers.append(logging.FileHandler(theirs.log_file))
        except OSError as error:
            raise InvalidSettings(
                f"LOG_FILE_PATH: {theirs.log_file} cannot be written: {error.strerror}"
            ) from error
    logging.basicConfig(level=level, format=_LOG_FORMAT, handlers=handlers, force=True)
