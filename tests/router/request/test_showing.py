import pytest

from kvtier.router.request.showing import shown


@pytest.mark.parametrize("text", ["Qwen/Qwen3-8B:fp8", "modèle", 'a"b', "a'b", ""])
def test_a_name_stays_as_it_is(text: str) -> None:
    assert shown(text) == text


def test_what_would_end_a_line_or_colour_a_terminal_is_escaped() -> None:
    assert shown("m\x1b[31m\r\n\ud800") == r"m\x1b[31m\r\n\ud800"


def test_a_long_text_is_cut() -> None:
    assert shown("x" * 100) == "x" * 100
    assert shown("x" * 5_000_000) == "x" * 100 + "..."
    assert shown("abcd", 3) == "abc..."
