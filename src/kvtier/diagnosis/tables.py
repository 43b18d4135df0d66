"""Renders a diagnosis for the terminal: the checks, then what keeps key spaces apart.

Invariant: text from storage is never interpreted as markup or terminal control sequences.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from kvtier.blocks.key import GroupShape
from kvtier.diagnosis.report import (
    Diagnosis,
    Difference,
    Family,
    FamilyMember,
    SpacePair,
    Status,
    Verdict,
)
from kvtier.inspection.view import printable

_STYLES: Final = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}
_LONG_DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{4,}\b")


def report_view(report: Diagnosis) -> RenderableType:
    """Render a diagnosis."""
    parts: list[RenderableType] = [_checks(report)] if report.checks else []
    for family in report.families:
        parts += _family_parts(family)
    return Group(*parts)


def value_text(value: Any) -> str:
    """Return a short form of a field's value; long digests are cut."""
    if isinstance(value, tuple) and all(isinstance(each, GroupShape) for each in value):
        shapes = [f"{each.tokens_per_block} tokens ({each.layers})" for each in value]
        return _short(", ".join(shapes))
    return _short(str(value))


def _checks(report: Diagnosis) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=False, overflow="fold", max_width=32)
    table.add_column(overflow="fold", ratio=1)
    for check in report.checks:
        status = Text(check.status.value, style=_STYLES[check.status])
        table.add_row(status, Text(printable(check.topic)), Text(printable(check.told)))
        if check.fix is not None:
            table.add_row("", "", _change(check.fix))
    return table


def _family_parts(family: Family) -> Iterator[RenderableType]:
    count = len(family.members)
    models = printable(", ".join(family.models))
    yield Text(f"\n{models}: {count} key space{'' if count == 1 else 's'}", style="bold")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for member in family.members:
        table.add_row(member.label, Text(f"{printable(member.name)} in {printable(member.place)}"))
        table.add_row("", Text(_brief(member), style="dim"))
    yield Padding(table, (0, 0, 0, 2), expand=False)
    explained: set[str] = set()
    for pair in family.pairs:
        yield from _pair_parts(pair, explained)
    if family.pairs_left_out:
        yield Text(f"\n  and {family.pairs_left_out:,} more pairs: name fewer places", style="dim")


def _brief(member: FamilyMember) -> str:
    space = member.space
    words = (space.engine, space.dtype, space.layout, f"tp {space.tp_size}", space.isa)
    return printable(", ".join(words))


def _pair_parts(pair: SpacePair, explained: set[str]) -> Iterator[RenderableType]:
    style = "red" if pair.verdict is Verdict.NEVER else "yellow" if pair.verdict else "green"
    yield Text(f"\n  {pair.one} and {pair.other}: {pair.conclusion}", style=style)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    for each in sorted(pair.differences, key=lambda each: each.verdict is Verdict.FOLLOWS):
        one, other = map(value_text, each.values)
        table.add_row(Text(each.field), Text(printable(f"{one} | {other}")))
        for line in _explained(each, explained):
            table.add_row("", line)
    yield Padding(table, (0, 0, 0, 4), expand=False)


def _explained(difference: Difference, explained: set[str]) -> Iterator[Text]:
    """Yield the reason and what to change, or a reference to the same text above."""
    if difference.verdict is Verdict.FOLLOWS:
        yield Text(difference.change, style="dim")
        return
    text = f"{difference.field} {difference.why} {difference.change}"
    if text in explained:
        yield Text("As above.", style="dim")
        return
    explained.add(text)
    yield Text(printable(difference.why))
    yield _change(difference.change)


def _change(text: str) -> Text:
    return Text(f"-> {printable(text)}", style="cyan")


def _short(text: str) -> str:
    return _LONG_DIGEST.sub(r"\1…", text)
