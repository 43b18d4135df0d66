"""`kvtier fsck`: verifies and repairs what a shared folder or bucket holds."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import click
import msgspec

from kvtier.cli.process import EXIT_INTERRUPTED
from kvtier.cli.progress import Bar
from kvtier.cli.stopping import Stopper
from kvtier.clock import Clock
from kvtier.inspection.fsck import CheckObserver, CheckOptions, check_store
from kvtier.inspection.report import CheckReport, Finding
from kvtier.inspection.store_check import THREADS
from kvtier.inspection.workers import Stopped, Throttle
from kvtier.settings.sizes import approximate_size, parse_size

EXIT_PROBLEMS = 1


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
    help="Move broken segments to quarantine and delete temporary files older than an hour.",
)
@click.option(
    "--key-file",
    "key_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with a secret of the store, as in shared.key_file. Repeat the flag for several.",
)
@click.option(
    "--rate",
    metavar="SIZE/s",
    help="Read at most this much per second: 200MiB/s.  [default: no limit]",
)
@click.option(
    "--resume",
    "cursor_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep the position of the check in FILE instead of in the store, for stores that this "
    "host may only read.",
)
@click.option(
    "--from-start", is_flag=True, help="Check everything, even if an earlier run was stopped."
)
@click.option(
    "--space",
    "spaces",
    multiple=True,
    metavar="NAME",
    help="Check this key space only. Repeat the flag for several.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    default=THREADS,
    show_default=True,
    help="Number of threads that read.",
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

    PATH is a folder, or a bucket as s3://bucket/prefix, gs://… or az://…. Engines may use it
    during the check. Ctrl-C stops the check; run the same command again to resume it. Files of
    other programs are reported and never touched. Trees of vLLM's fs tier and of llm-d cannot be
    verified, because they carry no checksums.
    """
    options = CheckOptions(spaces, key_files, cursor_path, repair, from_start, threads)
    throttle = Throttle(None if rate is None else parse_size(rate.removesuffix("/s"), "--rate"))
    observer = ProgressObserver(as_json=as_json)
    try:
        with _quiet_log(), observer.bar:
            report = Stopper(throttle).run(
                lambda: check_store(path, options, throttle, observer), "kvtier-check"
            )
    except Stopped:
        observer.warned("stopped before the storage answered; run the same command to resume")
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    observer.print_findings(report)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        click.echo(_summary(report))
    if not report.complete:
        raise click.exceptions.Exit(EXIT_INTERRUPTED)
    raise click.exceptions.Exit(0 if report.clean else EXIT_PROBLEMS)


class ProgressObserver(CheckObserver):
    """An observer that shows the progress, and prints each finding as soon as it is made."""

    def __init__(self, *, as_json: bool, clock: Clock | None = None) -> None:
        """`as_json`: print no findings; they are in the report."""
        self.bar = Bar("verifying", clock)
        self._as_json = as_json
        self._printed = [0, 0]

    def resumed(self, after: str, started_s: float) -> None:
        """Say where an earlier check is resumed."""
        began = datetime.fromtimestamp(started_s).strftime("%Y-%m-%d %H:%M")
        click.echo(f"resuming after {after or 'the start'} (check begun {began})", err=True)

    def warned(self, text: str) -> None:
        """Print `text` as a warning on standard error."""
        click.echo(f"warning: {text}", err=True)

    def advanced(self, report: CheckReport, share: float) -> None:
        """Update the bar and print new findings; `share` of the store is done, 0 to 1."""
        news = f"{report.segments:,} segments, {approximate_size(report.bytes)}"
        if report.problems_found:
            news += f", {report.problems_found:,} problems"
        self.bar.show(share, news)
        self.print_findings(report)

    def print_findings(self, report: CheckReport) -> None:
        """Print the findings of `report` that were not printed yet."""
        if self._as_json:
            return
        for number, (kind, found) in enumerate(
            (("problem", report.problems), ("notice", report.notices))
        ):
            for finding in found[self._printed[number] :]:
                self._print(kind, finding)
            self._printed[number] = len(found)

    def _print(self, kind: str, finding: Finding) -> None:
        done = f" [{finding.repaired}]" if finding.repaired else ""
        self.bar.print(f"{kind}: {finding.file}: {finding.reason}{done}")


def _summary(report: CheckReport) -> str:
    verified = f"{report.segments:,} segments, {report.blocks:,} intact blocks"
    parts = [f"{verified}, {approximate_size(report.bytes)}"]
    for count, what in (
        (report.unverified, "segments not verified"),
        (report.vanished, "removed by others during the check"),
        (report.quarantined, "in quarantine from earlier"),
        (report.notices_found, "notices"),
    ):
        if count:
            parts.append(f"{count:,} {what}")
    if not report.complete:
        state = "stopped; run the same command again to resume"
    elif report.clean:
        state = "clean"
    else:
        state = f"{report.problems_found:,} problems"
    return f"{report.path}: {state} ({'; '.join(parts)})"


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Silence the tier's warnings: the report repeats them, and they would break up the bar."""
    log = logging.getLogger("kvtier.tiers.shared")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
