import io

from rich.console import Console

from kvtier.clock import VirtualClock
from kvtier_bench.progress import NEWS_EVERY_S, Steps


def steps_on(file: io.StringIO, clock: VirtualClock, *, terminal: bool) -> Steps:
    return Steps(Console(file=file, force_terminal=terminal, width=100), 2, clock)


def test_a_log_gets_each_step_and_its_time() -> None:
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


def test_a_log_gets_news_now_and_then() -> None:
    file, clock = io.StringIO(), VirtualClock()
    steps = steps_on(file, clock, terminal=False)
    with steps.step("start"):
        steps.tell("too early")
        clock.advance(NEWS_EVERY_S)
        steps.tell("waiting [for] vLLM")
        steps.tell("too soon after")
    assert "waiting [for] vLLM" in file.getvalue()
    assert "too" not in file.getvalue()


def test_a_terminal_gets_the_end_of_each_step() -> None:
    file = io.StringIO()
    steps = steps_on(file, VirtualClock(), terminal=True)
    with steps.step("start"):
        steps.tell("news")
    assert "[1/2] start" in file.getvalue()
