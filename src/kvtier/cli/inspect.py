"""`kvtier inspect`: shows what a shared folder or bucket holds."""

from contextlib import closing
from pathlib import Path

import click
import msgspec
from rich.console import Console

from kvtier.cli.stopping import Stopper
from kvtier.clock import wall_s
from kvtier.errors import InvalidSettings
from kvtier.inspection.opening import open_view
from kvtier.inspection.spaces import Secrets
from kvtier.inspection.survey import Survey
from kvtier.inspection.surveyor import Surveyor
from kvtier.inspection.tables import survey_view
from kvtier.inspection.view import printable
from kvtier.inspection.workers import Stopped


@click.command(
    epilog="""\b
Examples:
  kvtier inspect /mnt/kv
  kvtier inspect /mnt/kv --verbose --top 20
  kvtier inspect s3://bucket/prefix
  kvtier inspect /mnt/kv --json | jq '.spaces[] | {name, blocks}'
"""
)
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every field.")
@click.option("--verbose", is_flag=True, help="Show every field of each key space's identity.")
@click.option(
    "--top",
    type=click.IntRange(min=0),
    metavar="N",
    default=10,
    show_default=True,
    help="Number of hottest prefixes to show; 0 shows none.",
)
@click.option(
    "--space",
    "spaces",
    multiple=True,
    metavar="NAME",
    help="Show this key space only. Repeat the flag for several.",
)
@click.option(
    "--key-file",
    "key_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with a secret of the store, as in shared.key_file. Repeat the flag for several.",
)
def inspect(
    path: str,
    as_json: bool,  # noqa: FBT001
    verbose: bool,  # noqa: FBT001
    top: int,
    spaces: tuple[str, ...],
    key_files: tuple[Path, ...],
) -> None:
    """Show what the shared folder or bucket PATH holds, and change nothing.

    Lists the key spaces and how they differ, their blocks, bytes and ages, the hottest prefixes,
    quarantined, temporary and unknown files, and trees of other systems (vLLM's fs tier, llm-d).
    Ages are computed from the files' modification times and this host's clock. PATH is a folder,
    or a bucket as s3://bucket/prefix, gs://… or az://….
    """
    secrets = Secrets(key_files)
    try:
        survey = _survey(path, secrets, spaces, top)
    except Stopped:
        raise KeyboardInterrupt from None
    except OSError as error:
        raise InvalidSettings(f"{path} cannot be read: {error.strerror or error}") from error
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(survey), indent=2))
    else:
        Console().print(survey_view(survey, verbose=verbose))


def _survey(path: str, secrets: Secrets, spaces: tuple[str, ...], top: int) -> Survey:
    """Look at the store and show the progress. Raises Stopped."""
    stopper = Stopper()
    files = 0
    with Console(stderr=True).status("looking") as status:

        def on_file(name: str, share: float) -> None:
            nonlocal files
            files += 1
            if stopper.throttle.stopped:
                raise Stopped
            if files % 1000 == 0:
                folder_name = printable(name.partition("/")[0])
                status.update(f"{share:4.0%}  {files:,} files  {folder_name}")

        def make() -> Survey:
            with closing(open_view(path)) as view:
                surveyor = Surveyor(view, secrets, on_file)
                return surveyor.survey(now_s=wall_s(), wanted=spaces, top=top)

        return stopper.run(make, "kvtier-look", grace_s=0)
