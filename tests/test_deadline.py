import signal
import threading
import time
from collections.abc import Iterator

import pytest

from kvtier.deadline import within

WAIT_S = 30.0


def test_work_that_ends_in_time_returns_or_raises_as_if_called() -> None:
    assert within(WAIT_S, lambda: 7, print) == 7
    with pytest.raises(ZeroDivisionError):
        within(WAIT_S, lambda: 1 / 0, print)


def test_work_that_hangs_is_left_behind_and_its_result_discarded() -> None:
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


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where the tests run as a background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
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


@pytest.mark.usefixtures("interruptible")
def test_result_that_comes_after_an_interrupt_is_discarded() -> None:
    done, discarded = threading.Event(), threading.Event()

    def work() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        done.wait(60)

    with pytest.raises(KeyboardInterrupt):
        within(60, work, lambda _: discarded.set())
    done.set()
    assert discarded.wait(60)
