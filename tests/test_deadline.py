import signal
import threading
import time

import pytest

from kvtier.deadline import within

WAIT_S = 30.0


def test_what_ends_in_time_is_as_if_called() -> None:
    assert within(WAIT_S, lambda: 7, print) == 7
    with pytest.raises(ZeroDivisionError):
        within(WAIT_S, lambda: 1 / 0, print)


def test_what_hangs_is_left_alone_and_cleaned_up_when_it_ends() -> None:
    gate, discarded = threading.Event(), threading.Event()
    kept: list[int] = []

    def hang() -> int:
        gate.wait(WAIT_S)
        return 7

    def discard(result: int) -> None:
        kept.append(result)
        discarded.set()

    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        within(0.01, hang, discard)
    gate.set()
    assert discarded.wait(WAIT_S)
    assert kept == [7]


def test_interrupt_that_another_thread_receives_is_noticed_at_once() -> None:
    """The kernel may deliver a signal to any thread, or just before the main thread waits."""
    never = threading.Event()

    def work() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        never.wait(60)

    begun_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        within(60, work, lambda _: None)
    assert time.monotonic() - begun_s < 30
    never.set()


def test_result_that_comes_after_an_interrupt_is_discarded() -> None:
    done, discarded = threading.Event(), threading.Event()

    def work() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        done.wait(60)

    with pytest.raises(KeyboardInterrupt):
        within(60, work, lambda _: discarded.set())
    done.set()
    assert discarded.wait(60)
