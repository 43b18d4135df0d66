"""Renders a survey for the terminal: one table per key space, their differences, and the rest.

Invariant: text from storage is never interpreted as markup or terminal control sequences.
"""

from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kvtier.inspection.foreign import UNVERIFIABLE
from kvtier.inspection.survey import (
    Chain,
    FileTotals,
    ForeignTree,
    OtherFile,
    SpaceDifferences,
    SpaceSurvey,
    Survey,
)
from kvtier.inspection.view import printable
from kvtier.settings.sizes import approximate_size

_SHOWN = 20
_BRIEF = ("model", "dtype", "layout", "engine")
_KEY_CHARACTERS = 24
_AGES = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))


def survey_view(survey: Survey, *, verbose: bool) -> RenderableType:
    """Render a survey; `verbose` shows every field of each key space's identity."""
    parts: list[RenderableType] = [_summary(survey)]
    for space in survey.spaces:
        parts += _space_parts(space, survey.now_s, verbose=verbose)
    parts += [_differing(each) for each in survey.differing]
    parts += [_foreign(tree, survey.now_s) for tree in survey.foreign]
    parts += _other_files("not kvtier's", survey.unknown, survey.unknown_found)
    parts += _other_files("that cannot be read", survey.unreadable, survey.unreadable_found)
    return Group(*parts)


def age(seconds: float) -> str:
    """Format an age, as in `3.2 d`; a negative age, from another clock, is `0 s`."""
    for unit_s, unit in _AGES:
        if seconds >= unit_s:
            return f"{seconds / unit_s:.1f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def bytes_text(bulk: FileTotals) -> str:
    """Format nominal bytes, and physical bytes if they differ."""
    nominal, physical = map(approximate_size, (bulk.nominal_bytes, bulk.physical_bytes))
    if bulk.nominal_bytes == bulk.physical_bytes:
        return nominal
    return f"{nominal}, {physical} on the disk"


def ages_text(bulk: FileTotals, now_s: float) -> str:
    """Format the oldest, median and newest age; a dash without files."""
    if bulk.oldest_s is None or bulk.median_s is None or bulk.newest_s is None:
        return "-"
    return (
        f"oldest {age(now_s - bulk.oldest_s)}, median {age(now_s - bulk.median_s)}, "
        f"newest {age(now_s - bulk.newest_s)}"
    )


def _summary(survey: Survey) -> Table:
    table = _grid(survey.path)
    if survey.file_system is not None:
        system = survey.file_system
        free, total = map(approximate_size, (system.free_bytes, system.total_bytes))
        _row(table, "free", f"{free} of {total}, {system.free_inodes:,} inodes")
    _row(table, "key spaces", str(len(survey.spaces)) if survey.spaces else "none")
    if survey.foreign:
        _row(table, "other trees", str(len(survey.foreign)))
    temporaries = survey.temporaries
    if temporaries.files:
        text = f"{temporaries.files:,} files, {bytes_text(temporaries)}"
        _row(table, "temporaries", f"{text}; {ages_text(temporaries, survey.now_s)}")
    return table


def _space_parts(space: SpaceSurvey, now_s: float, *, verbose: bool) -> Iterator[RenderableType]:
    table = _grid(space.name)
    if space.mistake is not None:
        _row(table, "manifest", space.mistake, style="red")
    if space.space is not None:
        identity = space.space
        for field in identity.__struct_fields__ if verbose else _BRIEF:
            _row(table, field, _value(getattr(identity, field)))
    blocks = "" if space.blocks is None else f", {space.blocks:,} blocks"
    _row(table, "segments", f"{space.segments.files:,} files{blocks}")
    _row(table, "bytes", bytes_text(space.segments))
    _row(table, "ages", ages_text(space.segments, now_s))
    _row(table, "verified by", "a secret" if space.keyed else "checksums without a secret")
    if space.odd_lengths:
        text = f"{space.odd_lengths:,} files; run kvtier fsck"
        _row(table, "wrong length", text, style="red")
    for number, each in enumerate(space.quarantined):
        text = f"{each.file.rpartition('/')[2]}: {each.reason}"
        _row(table, "" if number else "quarantined", text, style="yellow")
    yield table
    if space.hottest:
        yield _chains(space.hottest, now_s)
    elif space.keyed:
        yield Text("  hottest prefixes: give the secret's file with --key-file", style="dim")


def _chains(chains: list[Chain], now_s: float) -> Table:
    table = Table(title="  hottest prefixes", title_justify="left", box=SIMPLE, title_style="dim")
    table.add_column("first key", no_wrap=True)
    for heading in ("begins", "reads", "blocks", "tokens", "last read"):
        table.add_column(heading, justify="right")
    for chain in chains:
        short = chain.first_key[:_KEY_CHARACTERS]
        table.add_row(
            short if short == chain.first_key else f"{short}…",
            "prefix" if chain.parent is None else "later",
            f"{chain.reads:,}",
            f"{chain.blocks:,}",
            "?" if chain.tokens is None else f"{chain.tokens:,}",
            f"{age(now_s - chain.last_read_s)} ago",
        )
    return table


def _differing(differing: SpaceDifferences) -> Table:
    model = printable(differing.model)
    table = _grid(f"what keeps {len(differing.spaces)} key spaces of {model} apart")
    for field, values in differing.fields.items():
        for number, (space, value) in enumerate(values.items()):
            _row(table, "" if number else field, f"{_value(value)}  ({space[-16:]})")
    return table


def _foreign(tree: ForeignTree, now_s: float) -> Table:
    table = _grid(f"{tree.name}: {tree.system}, not kvtier's")
    for field, value in (tree.config or {}).items():
        _row(table, printable(field), _value(value))
    if tree.mistake is not None:
        _row(table, "error", tree.mistake, style="red")
    _row(table, "ranks", ", ".join(map(str, tree.ranks)) or "none")
    _row(table, "groups", ", ".join(map(str, tree.groups)) or "none")
    others = f", {tree.others:,} others" if tree.others else ""
    _row(table, "blocks", f"{tree.files.files:,} files{others}")
    _row(table, "bytes", bytes_text(tree.files))
    _row(table, "ages", ages_text(tree.files, now_s))
    _row(table, "verified by", f"nothing: {UNVERIFIABLE}")
    return table


def _other_files(title: str, files: list[OtherFile], found: int) -> Iterator[Table]:
    if not found:
        return
    table = _grid(f"{found:,} {title}")
    for each in files[:_SHOWN]:
        _row(table, each.what, each.name)
    if found > _SHOWN:
        _row(table, "", "and more; --json lists them")
    yield table


def _grid(title: str) -> Table:
    table = Table(
        title=Text(title),
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=False,
        pad_edge=True,
        padding=(0, 2),
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _row(table: Table, name: str, value: str, style: str = "") -> None:
    table.add_row(Text(name), Text(printable(value), style=style))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else str(value)
