"""`kvtier doctor`: why engines share or do not, and whether this machine is fit."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click
import msgspec
from rich.console import Console

from kvtier import settings
from kvtier.cli.flags import given, setting_flags
from kvtier.diagnosis.examination import Tell, examine, examine_places
from kvtier.diagnosis.report import Report
from kvtier.diagnosis.tables import report_view
from kvtier.errors import InvalidSettings

EXIT_FAILS = 1


@click.command(
    epilog="""\b
Exit code: 0 nothing fails, 1 something fails, 2 wrong usage.
Examples:
  kvtier doctor /mnt/kv
  kvtier doctor s3://bucket/kvtier /mnt/nvme/kvtier
  kvtier doctor --config kvtier.yaml
  kvtier doctor --ram 20GiB --shared /mnt/kv --json
"""
)
@click.argument("places", nargs=-1, metavar="[PLACE]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every field.")
@setting_flags
def doctor(
    *,
    places: tuple[str, ...],
    as_json: bool,
    file: str | None,
    **flags: str | None,
) -> None:
    """Say why engines do not share, or what is wrong with the settings on this machine.

    With PLACEs (a shared folder, a bucket's URL, the folder of a disk tier, a manifest.json):
    which key spaces there are, which field keeps two of one model apart, why, and what to
    change. Without: checks the settings that `kvtier serve` would take, by flags, --config or
    KVTIER_ variables, against this machine and its storage, and then the same.
    Writes and removes a few small files where a tier would; nothing stays.
    """
    if places and (file is not None or given(flags)):
        raise click.UsageError("name places, or give settings, not both")
    with _telling() as tell, _quiet_log():
        report = examine_places(places, tell) if places else _examine(file, given(flags), tell)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        Console().print(report_view(report))
    raise click.exceptions.Exit(0 if report.ok else EXIT_FAILS)


def _examine(file: str | None, flags: dict[str, str], tell: Tell) -> Report:
    try:
        return examine(settings.resolve(file=file, flags=flags), tell)
    except InvalidSettings as error:
        return examine(error, tell)


@contextmanager
def _telling() -> Iterator[Tell]:
    """What is asked now, on a terminal: storage may take its time."""
    with Console(stderr=True).status("looking") as status:
        yield lambda place: status.update(f"asking {place}")


@contextmanager
def _quiet_log() -> Iterator[None]:
    """The report says what the log of a tier that opens would say."""
    log = logging.getLogger("kvtier")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
