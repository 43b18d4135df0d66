import io

import pytest
from rich.console import Console

from kvtier.clock import VirtualClock
from kvtier_bench.progress import NEWS_EVERY_S, PhaseScreen, Steps


def steps_on(file: io.StringIO, clock: VirtualClock, *, terminal: bool) -> Steps:
    return Steps(Console(file=file, force_terminal=terminal, width=100), 2, clock)


def test_steps_in_log_print_title_and_time() -> None:
    file, clock = io.StringIO(), VirtualClock()
    steps = steps_on(file, clock, terminal=False)
    with steps.step("vLLM alone"):
        clock.advance(61)
    with steps.step("kvtier"):
        pass
    assert file.getvalue().splitlines() == [
        "[1/2] vLLM alone...",
        "[1/2] vLLM alone 61 s",
        "[2/2] kvtier...",
        "[2/2] kvtier 0 s",
    ]


def test_steps_in_log_print_news_every_fifteen_seconds() -> None:
    file, clock = io.StringIO(), VirtualClock()
    steps = steps_on(file, clock, terminal=False)
    with steps.step("start"):
        steps.tell("too early")
        clock.advance(NEWS_EVERY_S)
        steps.tell("waiting [for] vLLM")
        steps.tell("too soon after")
    assert "waiting [for] vLLM" in file.getvalue()
    assert "too" not in file.getvalue()


def test_steps_on_terminal_print_end_of_each_step() -> None:
    file = io.StringIO()
    steps = steps_on(file, VirtualClock(), terminal=True)
    with steps.step("start"):
        steps.tell("news")
    assert "[1/2] start" in file.getvalue()


def screen_on(file: io.StringIO, clock: VirtualClock, *, terminal: bool) -> PhaseScreen:
    console = Console(file=file, force_terminal=terminal, width=100)
    return PhaseScreen(console, ["vLLM alone", "kvtier"], 240.0, clock)


def test_phase_screen_without_terminal_prints_lines() -> None:
    file, clock = io.StringIO(), VirtualClock()
    with screen_on(file, clock, terminal=False) as screen:
        with screen.phase():
            clock.advance(5)
            screen.tell("too early")
            clock.advance(60)
            screen.tell("serving [all]")
            screen.result("6.81 s")
            screen.expect(61.0)
        screen.leave_out()
    assert file.getvalue().splitlines() == [
        "[0:00] 1/2 vLLM alone, about 4:00 left",
        "[1:05]     serving [all], about 2:55 left",
        "[1:05]     6.81 s",
        "[1:05] 1/2 took 65 s",
        "[1:05]     left out: no time",
    ]


def test_phase_screen_on_terminal_shows_phases_results_and_time() -> None:
    file, clock = io.StringIO(), VirtualClock()
    with screen_on(file, clock, terminal=True) as screen, screen.phase():
        clock.advance(70)
        screen.result("6.81 s")
        screen.tell("serving")
        screen.say("Chosen: [one] prompt")
    shown = file.getvalue()
    for text in ("vLLM alone", "kvtier", "6.81 s", "1:10 passed", "Chosen: [one] prompt", "70 s"):
        assert text in shown, text


def test_phase_screen_after_error_restores_terminal() -> None:
    file = io.StringIO()
    with (
        pytest.raises(KeyboardInterrupt),
        screen_on(file, VirtualClock(), terminal=True) as screen,
        screen.phase(),
    ):
        raise KeyboardInterrupt
    assert file.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is shown again


def test_phase_screen_that_runs_over_says_almost_done() -> None:
    file, clock = io.StringIO(), VirtualClock()
    with screen_on(file, clock, terminal=False) as screen, screen.phase():
        clock.advance(300)
        screen.tell("still serving")
    assert "still serving, almost done" in file.getvalue()
