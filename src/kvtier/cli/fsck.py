"""`kvtier fsck`: verify all that a shared folder or bucket holds, and put it in order."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import click
import msgspec

from kvtier.cli.main import EXIT_INTERRUPTED
from kvtier.cli.process import stopping
from kvtier.cli.progress import Bar
from kvtier.clock import Clock
from kvtier.inspection.checking import Observer, Wish, check_store
from kvtier.inspection.fsck import THREADS
from kvtier.inspection.pace import Pace, Stopped
from kvtier.inspection.report import Finding, Report
from kvtier.inspection.workers import Workers
from kvtier.settings.sizes import approximate_size, parse_size

EXIT_PROBLEMS = 1
HANGS_S = 30.0
"""A check that was stopped, and has not noted by then how far it is, never will."""


@click.command(
    epilog="""\b
Exit code: 0 clean, 1 problems found (repaired or not), 2 nothing could be checked.
Examples:
  kvtier fsck /mnt/kv --rate 200MiB/s
  kvtier fsck /mnt/kv --repair
  kvtier fsck s3://bucket/prefix --resume here.json
  kvtier fsck /mnt/kv --key-file secret.hex --json > report.json
"""
)
@click.argument("path")
@click.option(
    "--repair",
    is_flag=True,
    help="Quarantine broken segments, remove temporary files older than an hour.",
)
@click.option(
    "--key-file",
    "key_files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A secret (shared.key_file); repeat for several.",
)
@click.option("--rate", metavar="SIZE/s", help="Read no faster, as 200MiB/s.")
@click.option(
    "--resume",
    "cursor_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep the place to go on at here, not in the store.",
)
@click.option("--from-start", is_flag=True, help="Do not go on where an earlier run stopped.")
@click.option("--space", "spaces", multiple=True, metavar="NAME", help="Only this key space.")
@click.option(
    "--threads", type=click.IntRange(1, 64), default=THREADS, show_default=True, help="Readers."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def fsck(
    path: str,
    repair: bool,  # noqa: FBT001
    key_files: tuple[Path, ...],
    rate: str | None,
    cursor_path: Path | None,
    from_start: bool,  # noqa: FBT001
    spaces: tuple[str, ...],
    threads: int,
    as_json: bool,  # noqa: FBT001
) -> None:
    """Verify the shared folder or bucket PATH: manifests, names, headers, lengths, every block.

    A bucket: s3://bucket/prefix, gs://… or az://…. Engines may go on using it. Ctrl-C stops the
    check; the next run goes on where it stopped. Files that are not kvtier's are reported and
    never touched, and trees of other systems (vLLM fs, llm-d FS) cannot be verified: they carry
    no checksums.
    """
    wish = Wish(spaces, key_files, cursor_path, repair, from_start, threads)
    pace = Pace(None if rate is None else parse_size(rate.removesuffix("/s"), "--rate"))
    watcher = Watcher(as_json=as_json)
    # In a thread of its own: a mount that hangs must not keep anybody from pressing Ctrl-C.
    with (
        stopping(pace.stop),
        _quiet_log(),
        watcher.bar,
        Workers(1, "kvtier-check", pace, HANGS_S) as workers,
    ):
        try:
            report = workers.result(workers.submit(lambda: check_store(path, wish, pace, watcher)))
        except Stopped:
            watcher.warned("the storage hangs, and is left as it is; run the same again to go on")
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    watcher.tell_findings(report)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        click.echo(_summary(report))
    if not report.complete:
        raise click.exceptions.Exit(EXIT_INTERRUPTED)
    raise click.exceptions.Exit(0 if report.clean else EXIT_PROBLEMS)


class Watcher(Observer):
    """Shows a bar on a terminal, a line now and then in a log, and each finding as it comes."""

    def __init__(self, *, as_json: bool, clock: Clock | None = None) -> None:
        """`as_json`: findings are in the report only."""
        self.bar = Bar("verifying", clock)
        self._as_json = as_json
        self._told = [0, 0]

    def resumed(self, after: str, started_s: float) -> None:
        """See Observer."""
        began = datetime.fromtimestamp(started_s).strftime("%Y-%m-%d %H:%M")
        click.echo(f"going on after {after or 'the start'} (check begun {began})", err=True)

    def warned(self, text: str) -> None:
        """See Observer."""
        click.echo(f"warning: {text}", err=True)

    def advanced(self, report: Report, share: float) -> None:
        """See Observer."""
        news = f"{report.segments:,} segments, {approximate_size(report.bytes)}"
        if report.problems_found:
            news += f", {report.problems_found:,} problems"
        self.bar.show(share, news)
        self.tell_findings(report)

    def tell_findings(self, report: Report) -> None:
        """Print those that were not printed yet."""
        if self._as_json:
            return
        for number, (kind, found) in enumerate(
            (("problem", report.problems), ("notice", report.notices))
        ):
            for finding in found[self._told[number] :]:
                self._print(kind, finding)
            self._told[number] = len(found)

    def _print(self, kind: str, finding: Finding) -> None:
        done = f" [{finding.repaired}]" if finding.repaired else ""
        self.bar.print(f"{kind}: {finding.file}: {finding.reason}{done}")


def _summary(report: Report) -> str:
    verified = f"{report.segments:,} segments, {report.blocks:,} sound blocks"
    parts = [f"{verified}, {approximate_size(report.bytes)}"]
    for count, what in (
        (report.unverified, "segments not verified"),
        (report.vanished, "removed by others meanwhile"),
        (report.quarantined, "in quarantine from earlier"),
        (report.notices_found, "notices"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    if not report.complete:
        state = "stopped; run the same again to go on"
    elif report.clean:
        state = "clean"
    else:
        state = f"{report.problems_found:,} problems"
    return f"{report.path}: {state} ({'; '.join(parts)})"


@contextmanager
def _quiet_log() -> Iterator[None]:
    """The report says what was quarantined; the log would say it again, across the bar."""
    log = logging.getLogger("kvtier.tiers.shared")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
