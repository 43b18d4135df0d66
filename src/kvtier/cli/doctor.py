"""`kvtier doctor`: explains why engines do not share blocks, and checks settings and machine."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click
import msgspec
from rich.console import Console

from kvtier import settings
from kvtier.cli.flags import given, setting_flags
from kvtier.diagnosis.examination import OnPlace, examine, examine_places
from kvtier.diagnosis.report import Diagnosis
from kvtier.diagnosis.tables import report_view
from kvtier.errors import InvalidSettings

EXIT_FAILS = 1


@click.command(
    epilog="""\b
Exit code: 0 no check failed, 1 a check failed, 2 wrong usage, 130 interrupted.
Examples:
  kvtier doctor /mnt/kv
  kvtier doctor s3://bucket/kvtier /mnt/nvme/kvtier
  kvtier doctor --config kvtier.yaml
  kvtier doctor --ram 20GiB --shared /mnt/kv --json
"""
)
@click.argument("places", nargs=-1, metavar="[PLACE]...")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, with all fields.")
@setting_flags
def doctor(
    *,
    places: tuple[str, ...],
    as_json: bool,
    file: str | None,
    **flags: str | None,
) -> None:
    """Explain why engines do not share blocks, or what is wrong with the settings.

    With PLACEs (shared folders, URLs of buckets, folders of disk tiers, manifest.json files):
    shows the key spaces in them, which fields keep two key spaces of one model apart, why, and
    what to change.

    Without PLACE: checks the settings that `kvtier serve` would use (flags, --config, KVTIER_
    variables) against this machine and its storage, and then the key spaces in that storage.
    A few small files are written and removed where a tier would write; none is left.
    """
    if places and (file is not None or given(flags)):
        raise click.UsageError("give either PLACEs or settings, not both")
    with _showing_place() as on_place, _quiet_log():
        report = (
            examine_places(places, on_place) if places else _examine(file, given(flags), on_place)
        )
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        Console().print(report_view(report))
    raise click.exceptions.Exit(0 if report.ok else EXIT_FAILS)


def _examine(file: str | None, flags: dict[str, str], on_place: OnPlace) -> Diagnosis:
    try:
        return examine(settings.resolve(file=file, flags=flags), on_place)
    except InvalidSettings as error:
        return examine(error, on_place)


@contextmanager
def _showing_place() -> Iterator[OnPlace]:
    """Show on a terminal which place is being checked, because storage may be slow."""
    with Console(stderr=True).status("checking") as status:
        yield lambda place: status.update(f"checking {place}")


@contextmanager
def _quiet_log() -> Iterator[None]:
    """Silence the log of the tiers that are opened: the report contains the same."""
    log = logging.getLogger("kvtier")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
