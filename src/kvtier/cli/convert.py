"""`kvtier convert`: copies blocks between the trees of other systems and a shared store."""

from pathlib import Path
from typing import Any

import click
import msgspec

from kvtier.cli.process import EXIT_INTERRUPTED
from kvtier.cli.progress import Bar
from kvtier.cli.stopping import Stopper
from kvtier.conversion.converting import ConversionOptions
from kvtier.conversion.converting import convert as convert_tree
from kvtier.conversion.work import Conversion
from kvtier.inspection.workers import Stopped, Throttle
from kvtier.settings.sizes import approximate_size

EXIT_REFUSED = 1
_SHOWN = 20


@click.command(
    epilog="""\b
Exit code: 0 done, 1 some files were refused, 2 nothing can be converted, 130 stopped.
Examples:
  kvtier convert /mnt/vllm /mnt/kv --space Qwen3-8B-0123456789abcdef --dry-run
  kvtier convert /mnt/vllm s3://bucket/prefix --manifest manifest.json
  kvtier convert /mnt/kv /mnt/vllm --to vllm-fs --space Qwen3-8B-0123456789abcdef
"""
)
@click.argument("source")
@click.argument("destination")
@click.option(
    "--to",
    type=click.Choice(["kvtier", "vllm-fs"]),
    default="kvtier",
    show_default=True,
    help="Format of DESTINATION.",
)
@click.option(
    "--space",
    metavar="FOLDER",
    help="Key space to convert into (with --to vllm-fs: from), a folder of the kvtier store.",
)
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Manifest of the key space, instead of --space, if no engine has created the key space "
    "in DESTINATION yet.",
)
@click.option("--tree", metavar="NAME", help="Tree to convert, if there are several.")
@click.option(
    "--key-file",
    "key_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with a secret of the store, as in shared.key_file. Repeat the flag for several.",
)
@click.option("--dry-run", is_flag=True, help="Compare and count; write nothing.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Convert at most N blocks.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def convert(*, as_json: bool, **flags: Any) -> None:
    """Convert a tree of vLLM's fs tier or of llm-d in SOURCE into the shared store DESTINATION.

    A shared store is a folder, or a bucket as s3://bucket/prefix, gs://… or az://…. With --to
    vllm-fs the blocks go the other way: SOURCE is the shared store, and DESTINATION the root_dir
    of an fs tier that an engine has already used once. SOURCE is only read. Blocks that exist in
    DESTINATION are kept, so the same command resumes a conversion that was stopped with Ctrl-C.

    A tree does not record its model revision, weights, instruction set and hash seed. By naming
    the key space, YOU vouch for them. Trees carry no checksums either: files of the wrong length
    are refused, but other damage from before the conversion is not detected.
    """
    options = ConversionOptions(**flags)
    throttle = Throttle()

    def show(report: Conversion, share: float) -> None:
        bar.show(share, _news(report))

    try:
        with Bar("converting") as bar:
            report = Stopper(throttle).run(
                lambda: convert_tree(options, throttle, show), "kvtier-convert"
            )
    except Stopped:
        click.echo("stopped before the storage answered; run the same command to resume", err=True)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        _print(report)
    if not report.complete and not report.limited:
        raise click.exceptions.Exit(EXIT_INTERRUPTED)
    raise click.exceptions.Exit(EXIT_REFUSED if report.refused_files else 0)


def _news(report: Conversion) -> str:
    news = f"{report.converted:,} blocks, {approximate_size(report.bytes)}"
    if report.existed:
        news += f", {report.existed:,} already there"
    if report.refused_files:
        news += f", {report.refused_files:,} refused"
    return news


def _print(report: Conversion) -> None:
    for refusal in report.refusals[:_SHOWN]:
        click.echo(f"refused: {refusal.file}: {refusal.reason}")
    if report.refused_files > _SHOWN:
        click.echo("more files were refused; --json lists them all")
    done = "would be converted" if report.dry_run else "converted"
    parts = [
        f"{report.converted:,} blocks {done}, {approximate_size(report.bytes)}",
        f"{report.existed:,} already there",
        f"{report.refused_files:,} refused",
    ]
    parts += [f"{count:,} {kind}" for kind, count in sorted(report.refused.items())]
    if report.limited:
        parts.append("stopped at --limit")
    elif not report.complete:
        parts.append("stopped; run the same command again to resume")
    click.echo(f"{report.tree} ({report.system}), {report.space}: {'; '.join(parts)}")
    click.echo(f"not recorded in the tree, taken on your word: {', '.join(report.unproven)}")
