"""The command `kvtier evict`, which keeps a shared folder or bucket within its bounds."""

import logging
import os
import signal
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich.console import Console

from kvtier.cli.stopping import Stopper
from kvtier.errors import InvalidSettings
from kvtier.evictor.context import PassStopped
from kvtier.evictor.events import EventAnnouncer, Publisher
from kvtier.evictor.evictor import Evictor
from kvtier.evictor.metering import EvictorMeter, serve
from kvtier.evictor.opening import open_store
from kvtier.evictor.options import EvictorFlags, read_options
from kvtier.evictor.report import PassReport, pass_view, progress_on, summary_line
from kvtier.inspection.workers import Stopped, Throttle
from kvtier.settings.compat import pvc_evictor
from kvtier.settings.compat.pvc_evictor import PvcEvictor
from kvtier.settings.sizes import parse_duration

_log = logging.getLogger("kvtier.evict")
_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(message)s"


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
@click.option(
    "--high",
    metavar="SIZE|%",
    help="Start deleting above this size (`85%` is of the file system).",
)
@click.option(
    "--low", metavar="SIZE|%", help="Delete down to this size.  [default: nine tenths of --high]"
)
@click.option(
    "--high-inodes",
    metavar="N",
    help="Start deleting above this number of files and folders.",
)
@click.option(
    "--low-inodes",
    metavar="N",
    help="Delete down to this number.  [default: nine tenths of --high-inodes]",
)
@click.option(
    "--quota",
    "quotas",
    multiple=True,
    metavar="FOLDER=SIZE",
    help="Keep the key space in FOLDER below this size. Repeat the flag for several.",
)
@click.option(
    "--ttl",
    metavar="DURATION",
    help="Delete blocks that were neither written nor read for this long, for example 72h.",
)
@click.option(
    "--grace",
    metavar="DURATION",
    default="60s",
    show_default=True,
    help="Keep blocks that were written or read within this time, whatever the bounds are.",
)
@click.option(
    "--policy",
    metavar="NAME",
    default="lru",
    show_default=True,
    help="Use this policy to rank the blocks: lru, s3fifo, or another module of kvtier.eviction.",
)
@click.option(
    "--orphans",
    metavar="DURATION",
    default="1h",
    show_default=True,
    help="Delete temporary files that are older than this, because their writers have died.",
)
@click.option(
    "--lease",
    metavar="DURATION",
    default="60s",
    show_default=True,
    help="An evictor silent for this long counts as dead; others take over its shards.",
)
@click.option(
    "--sweep",
    metavar="DURATION",
    default="1h",
    show_default=True,
    help="Wait this long between two searches for temporary files and empty folders.",
)
@click.option(
    "--interval",
    metavar="DURATION",
    default="30s",
    show_default=True,
    help="Wait this long between two passes.",
)
@click.option("--once", is_flag=True, help="Make one pass and exit.")
@click.option("--dry-run", is_flag=True, help="Show what one pass would delete; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON per pass.")
@click.option(
    "--files-per-second",
    type=float,
    metavar="N",
    help="Scan at most this many files per second.  [default: no limit]",
)
@click.option(
    "--max-delete-per-second",
    "deletes_per_second",
    type=float,
    metavar="N",
    help="Delete at most this many files per second.  [default: no limit]",
)
@click.option(
    "--check-headers",
    is_flag=True,
    help="Read the header of every segment and count the broken segments.",
)
@click.option(
    "--sweep-broken",
    is_flag=True,
    help="Move broken segments to quarantine. Implies --check-headers.",
)
@click.option(
    "--delete-unknown",
    is_flag=True,
    help="Also delete files that belong to no known layout. By default they are only counted.",
)
@click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the store's secret from this file, as with the setting shared.key_file.",
)
@click.option(
    "--events",
    metavar="ENDPOINT",
    help="Publish the deleted blocks to routers at this ZeroMQ endpoint, for example "
    "tcp://127.0.0.1:5559.",
)
@click.option(
    "--metrics-port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Serve Prometheus metrics on this port of 127.0.0.1; 0 takes a free port.",
)
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

    Runs until it is stopped, or once with --once. Files whose blocks were used least recently are
    deleted first; use is read from the access logs that engines write, not from access times. Any
    number of evictors may run for one PATH, on any hosts: they divide the work among themselves.

    PATH may also hold trees of vLLM's fs tier and of llm-d; they are evicted as well. Without
    PATH, the settings come from the variables of llm-d's PVC evictor (PVC_MOUNT_PATH, ...).
    """
    variables = pvc_evictor.read(os.environ) if path is None else None
    chosen = _flags(path, variables, flags)
    _log_to(variables, verbose=not (once or chosen.dry_run))
    if variables is not None and variables.ignored:
        names = ", ".join(variables.ignored)
        _log.warning("ignored, because they have no effect in kvtier: %s", names)
    interval_s = parse_duration(interval, "--interval")
    if interval_s <= 0:
        raise InvalidSettings(f"--interval: {interval} is not more than 0; write 30s")
    events_from = "--events"
    if events is None and variables is not None:
        events, events_from = variables.events, pvc_evictor.EVENTS
    run = _Run(
        flags=chosen,
        interval_s=None if once or chosen.dry_run else interval_s,
        as_json=as_json,
        events=events,
        events_from=events_from,
        metrics_port=metrics_port,
    )
    stopper = Stopper()
    try:
        stopper.run(lambda: run(stopper.throttle), "kvtier-evict")
    except Stopped:
        _log.warning("stopped before the storage answered; leases expire after %s", chosen.lease)
    if stopper.signal == signal.SIGINT:
        raise KeyboardInterrupt
    if stopper.signal is not None:
        _log.info("stopped by %s", signal.Signals(stopper.signal).name)


class _Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the command."""

    flags: EvictorFlags
    interval_s: float | None
    """Time between two passes; None: one pass."""
    as_json: bool
    events: str | None
    events_from: str
    """The flag or variable that named `events`."""
    metrics_port: int | None

    def __call__(self, throttle: Throttle) -> None:
        """Evict until `throttle` is stopped."""
        with ExitStack() as stack:
            opened = open_store(self.flags.path)
            stack.callback(opened.store.close)
            options = read_options(self.flags, opened.measure())
            publisher = announcer = None
            if self.events is not None and not options.dry_run:
                publisher = Publisher(self.events, setting=self.events_from)
                stack.callback(publisher.close)
                announcer = EventAnnouncer(opened.store, publisher, options, opened.owner)
            evictor = Evictor(
                opened.store,
                options,
                filesystem=opened.filesystem,
                mounts=opened.mounts,
                observer=stack.enter_context(progress_on(Console(stderr=True))),
                announcer=announcer,
                stopped=lambda: throttle.stopped,
            )
            evictor.check()
            meter = EvictorMeter(publisher=publisher, announcer=announcer)
            if self.metrics_port is not None:
                stack.enter_context(serve(meter, self.metrics_port))
            stack.callback(_release, evictor)
            with suppress(PassStopped):
                self._evict(evictor, meter)

    def _evict(self, evictor: Evictor, meter: EvictorMeter) -> None:
        """Run passes. An error of the store ends a single pass only; otherwise it is logged."""
        while True:
            try:
                report = evictor.run_once()
            except OSError as error:
                if self.interval_s is None:
                    raise click.ClickException(f"the store does not answer: {error}") from error
                _log.warning("the store does not answer: %s", error)
            else:
                meter.add(report)
                self._show(report)
            if self.interval_s is None:
                return
            evictor.wait(self.interval_s)

    def _show(self, report: PassReport) -> None:
        if self.as_json:
            click.echo(report.to_json().decode())
            sys.stdout.flush()
        elif self.interval_s is None:
            Console().print(pass_view(report))
        else:
            _log.info("%s", summary_line(report))


def _release(evictor: Evictor) -> None:
    """Release the leases, so that other evictors can take them over at once."""
    try:
        evictor.close()
    except OSError as error:
        _log.warning("the leases could not be released and will expire: %s", error)


def _flags(path: str | None, variables: PvcEvictor | None, flags: dict[str, Any]) -> EvictorFlags:
    """Return the flags; given flags override the variables of llm-d's evictor."""
    if variables is None:
        if path is None:
            raise InvalidSettings(
                f"PATH: name the folder that engines share, or set {pvc_evictor.MOUNT}"
            )
        return EvictorFlags(path=path, **flags)
    source = click.get_current_context().get_parameter_source("grace")
    if source is click.core.ParameterSource.DEFAULT:
        flags["grace"] = f"{variables.grace_s}s"
    if flags["high"] is None and flags["low"] is None:
        flags["high"], flags["low"] = variables.high, variables.low
    flags["dry_run"] = flags["dry_run"] or variables.dry_run
    return EvictorFlags(path=variables.path, sweep_foreign_folders=variables.sweep_folders, **flags)


def _log_to(variables: PvcEvictor | None, *, verbose: bool) -> None:
    """Log to stderr, and to the file that llm-d's variables name; `verbose`: at level INFO."""
    level = variables.log_level if variables else ("INFO" if verbose else "WARNING")
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if variables and variables.log_file:
        try:
            handlers.append(logging.FileHandler(variables.log_file))
        except OSError as error:
            raise InvalidSettings(
                f"LOG_FILE_PATH: {variables.log_file} cannot be written: {error.strerror}"
            ) from error
    logging.basicConfig(level=level, format=_LOG_FORMAT, handlers=handlers, force=True)
