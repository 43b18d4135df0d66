"""Worker threads that can be abandoned."""

import threading

import pytest

from kvtier.inspection import workers as workers_module
from kvtier.inspection.workers import Stopped, Throttle, Workers


def test_workers_return_results_and_errors() -> None:
    with Workers(3, "test", Throttle()) as workers:
        asked = [workers.submit(lambda number=number: number * 2) for number in range(50)]
        assert [workers.result(each) for each in asked] == list(range(0, 100, 2))
        failed = workers.submit(lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            workers.result(failed)
        assert workers.result(workers.submit(lambda: 7)) == 7, "the thread continues after an error"


def test_workers_start_work_a_bounded_number_ahead() -> None:
    begun: list[int] = []
    with Workers(2, "test", Throttle()) as workers:
        asked = (lambda number=number: begun.append(number) or number for number in range(1000))
        futures = workers.begin(asked)
        first = workers.result(next(futures))
        assert first == 0
        assert len(begun) < 20
        assert [workers.result(each) for each in futures] == list(range(1, 1000))


def test_workers_discard_queued_work_at_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "_NAPS", 1)
    monkeypatch.setattr(workers_module, "_NAP_S", 0.01)
    gate, done = threading.Event(), []
    with Workers(1, "test", Throttle()) as workers:
        workers.submit(gate.wait)
        asked = [workers.submit(lambda: done.append(1)) for _ in range(20)]
        assert asked[0].cancel()
    gate.set()
    for thread in threading.enumerate():
        if thread.name == "test-0":
            thread.join()
    assert done == []


def test_stop_does_not_wait_for_storage_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers_module, "_NAPS", 2)
    monkeypatch.setattr(workers_module, "_NAP_S", 0.01)
    throttle, gate = Throttle(), threading.Event()
    with Workers(2, "test", throttle) as workers:
        hanging = workers.submit(gate.wait)
        throttle.stop()
        assert workers.result(workers.submit(lambda: 1)) == 1, (
            "work that ends in time is waited for"
        )
        with pytest.raises(Stopped):
            workers.result(hanging)
    assert not gate.is_set()
    gate.set()


def test_keyboard_interrupt_waits_for_no_thread() -> None:
    gate = threading.Event()

    def insist() -> None:
        with Workers(1, "test", Throttle(), 3600.0) as workers:
            workers.submit(gate.wait)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        insist()
    gate.set()


def test_worker_threads_do_not_delay_the_exit() -> None:
    gate = threading.Event()
    with Workers(1, "test-daemon", Throttle()) as workers:
        workers.submit(gate.wait)
        (thread,) = (each for each in threading.enumerate() if each.name == "test-daemon-0")
        assert thread.daemon
        gate.set()
