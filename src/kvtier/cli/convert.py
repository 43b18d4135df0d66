"""`kvtier convert`: blocks of other systems' trees into a shared folder or bucket, and back."""

from pathlib import Path
from typing import Any

import click
import msgspec

from kvtier.cli.main import EXIT_INTERRUPTED
from kvtier.cli.process import stopping
from kvtier.cli.progress import Bar
from kvtier.conversion.converting import Wish
from kvtier.conversion.converting import convert as convert_tree
from kvtier.conversion.report import Conversion
from kvtier.inspection.pace import Pace
from kvtier.settings.sizes import approximate_size

EXIT_REFUSED = 1
_SHOWN = 20


@click.command(
    epilog="""\b
Exit code: 0 done, 1 some files were refused, 2 nothing can be converted.
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
    help="What DESTINATION is.",
)
@click.option("--space", metavar="FOLDER", help="The key space, a folder of the kvtier side.")
@click.option(
    "--manifest",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The key space's manifest, where no engine has made it in DESTINATION.",
)
@click.option("--tree", metavar="NAME", help="The tree, where there are several.")
@click.option(
    "--key-file",
    "key_files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A secret (shared.key_file); repeat for several.",
)
@click.option("--dry-run", is_flag=True, help="Compare and count; write nothing.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Convert at most N blocks.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def convert(*, as_json: bool, **wishes: Any) -> None:
    """Convert a tree of vLLM's fs tier or of llm-d in SOURCE into the shared store DESTINATION.

    A shared store is a folder, or a bucket (s3://bucket/prefix, gs://… or az://…). With --to
    vllm-fs the other way: DESTINATION is then the root_dir of a fs tier whose engine has run
    once. SOURCE is only read; what exists in DESTINATION is kept, so that the same command goes
    on after Ctrl-C.

    A tree does not say which revision, weights, instruction set and hash seed it is of. By naming
    the key space YOU say so. Nor does it carry checksums: a file of the wrong length is refused,
    other damage done before the conversion stays, undetected.
    """
    wish = Wish(**wishes)
    pace = Pace()
    with stopping(pace.stop), Bar("converting") as bar:
        report = convert_tree(wish, pace, lambda report, share: bar.show(share, _news(report)))
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
        news += f", {report.existed:,} there already"
    if report.refused_files:
        news += f", {report.refused_files:,} refused"
    return news


def _print(report: Conversion) -> None:
    for refusal in report.refusals[:_SHOWN]:
        click.echo(f"refused: {refusal.file}: {refusal.reason}")
    if report.refused_files > _SHOWN:
        click.echo("and more; --json lists them")
    done = "would be converted" if report.dry_run else "converted"
    parts = [
        f"{report.converted:,} blocks {done}, {approximate_size(report.bytes)}",
        f"{report.existed:,} there already",
        f"{report.refused_files:,} refused",
    ]
    parts += [f"{count:,} {kind}" for kind, count in sorted(report.refused.items())]
    if report.limited:
        parts.append("stopped at --limit")
    elif not report.complete:
        parts.append("stopped; run the same again to go on")
    click.echo(f"{report.tree} ({report.system}), {report.space}: {'; '.join(parts)}")
    click.echo(f"not told by the tree, taken on your word: {', '.join(report.unproven)}")
