"""A pass as a person reads it: a table for a terminal, one line for a log."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvtier.evictor.report import Report
from kvtier.settings.sizes import approximate_size

_NAMES_SHOWN = 10


def summary_line(report: Report) -> str:
    """What a log keeps of a pass."""
    verb = "would free" if report.dry_run else "freed"
    parts = [
        f"used {approximate_size(report.used_bytes)} in {report.used_inodes} files and folders",
        f"{verb} {approximate_size(report.freed_bytes)} in {report.freed_files} files",
        f"{report.shards_owned} shards here, {report.shards_of_others} elsewhere",
        f"{report.seconds:.1f} s",
    ]
    if report.short_bytes:
        parts.append(f"{approximate_size(report.short_bytes)} too much are in use or refused")
    for tree in report.trees.values():
        if tree.short_bytes:
            size = approximate_size(tree.short_bytes)
            parts.append(f"{size} beyond the quota of {tree.name} are in use or refused")
    if report.unknown_files:
        parts.append(f"{report.unknown_files} unknown files")
    if report.refused_calls:
        parts.append(f"{report.refused_calls} calls refused")
    return "; ".join(parts)


def pass_view(report: Report) -> RenderableType:
    """Everything a person asks: by tree, by reason, and what is odd."""
    verb = "would go" if report.dry_run else "gone"
    trees = Table(title="What is there", title_justify="left")
    for heading in ("folder", "layout"):
        trees.add_column(heading, overflow="fold")
    for heading in ("files", "physical", f"files {verb}", f"bytes {verb}"):
        trees.add_column(heading, justify="right")
    for tree in report.trees.values():
        freed = tree.freed
        trees.add_row(
            Text(tree.name),
            tree.layout,
            str(tree.files),
            approximate_size(tree.size_bytes),
            str(freed.files),
            approximate_size(freed.size_bytes),
        )
    title = "What would go" if report.dry_run else "What went"
    reasons = Table(title=title, title_justify="left")
    reasons.add_column("reason")
    for heading in ("files", "physical"):
        reasons.add_column(heading, justify="right")
    for reason, freed in report.freed.items():
        reasons.add_row(reason, str(freed.files), approximate_size(freed.size_bytes))
    lines = [Text(summary_line(report))]
    lines += [Text(f"not touched: {reason}") for reason in report.refused_trees.values()]
    lines += _named("unknown", report.unknown, report.unknown_files)
    lines += _named("broken", report.broken, report.broken_files)
    return Group(trees, reasons, *lines)


def _named(what: str, names: list[str], count: int) -> list[Text]:
    lines = [Text(f"{what}: {ascii(name)[1:-1]}") for name in names[:_NAMES_SHOWN]]
    if count > len(lines):
        lines.append(Text(f"{what}: {count - len(lines)} more; --json names them"))
    return lines
