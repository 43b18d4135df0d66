"""The progress bar on a terminal and in a log."""

import sys

import pytest

from kvtier.cli.progress import Bar
from kvtier.clock import VirtualClock


def test_bar_prints_lines_without_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    clock = VirtualClock()
    with Bar("verifying", clock) as bar:
        for step in range(7):
            bar.show(step / 7, f"{step} files")
            clock.advance(25)
        bar.print("found: [red]x[/]")
    told = capsys.readouterr()
    assert told.err.splitlines() == ["43%: 3 files", "86%: 6 files"]
    assert told.out == "found: [red]x[/]\n"


def test_bar_is_drawn_on_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    clock = VirtualClock()
    with Bar("verifying", clock) as bar:
        clock.advance(1000)
        bar.show(0.5, "7 files")
        bar.print("found: [red]x[/]")
    told = capsys.readouterr()
    assert told.out == ""
    assert "found: [red]x[/]" in told.err
    assert "verifying" in told.err
    assert "50%: 7 files" not in told.err
