import threading

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
