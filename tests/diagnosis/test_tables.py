import io

from rich.console import Console

from kvtier.blocks.key import GroupShape
from kvtier.diagnosis.comparison import LocatedSpace, compare
from kvtier.diagnosis.report import Check, failed, fine, report_of
from kvtier.diagnosis.tables import report_view, value_text
from kvtier.testing.samples import sample_space


def shown(spaces: list[LocatedSpace], *checks: Check) -> str:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(report_view(report_of(list(checks), compare(spaces))))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_checks_are_shown_with_their_fixes() -> None:
    text = shown([], fine("a", "is well"), failed("b", "is not", "Do this."))
    lines = [line.split() for line in text.splitlines()]
    assert lines == [["ok", "a", "is", "well"], ["fail", "b", "is", "not"], ["->", "Do", "this."]]


def test_differences_are_shown_with_reason_and_change() -> None:
    text = shown(
        [
            LocatedSpace("/kv", "one", sample_space(tp_size=2, world_size=2)),
            LocatedSpace("/kv", "two", sample_space()),
            LocatedSpace("/kv", "three", sample_space(dtype="int8")),
        ]
    )
    assert "tiny: 3 key spaces" in text
    assert "A  one in /kv" in text
    assert "A and B: can share once tp_size agrees" in text
    assert "A and C: cannot share: dtype differs" in text
    assert "tp_size     2 | 1" in text
    assert text.count("Blocks are divided per rank: 2 here, 1 there.") == 1
    assert "As above." in text
    assert "Nothing by itself: it follows from tp_size." in text


def test_text_from_storage_is_not_interpreted() -> None:
    name = "[red]x\x1b[2J"
    text = shown([LocatedSpace("/kv", name, sample_space(model=name))], failed(name, name))
    assert text.count("[red]x\\x1b[2J") == 4
    assert "\x1b" not in text


def test_long_digests_are_shortened() -> None:
    assert value_text("0123456789abcdef" * 4 + " 0123456789abcdef") == "0123456789ab… 0123456789ab…"
    assert value_text("d04e592b") == "d04e592b"
    shapes = (GroupShape(tokens_per_block=16, layers="0123456789abcdef"),)
    assert value_text(shapes) == "16 tokens (0123456789ab…)"
    assert value_text(2097152) == "2097152"
