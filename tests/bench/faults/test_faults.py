import threading

import pytest

from kvtier_bench.faults.faults import CallKind, FaultKind, Faults

EVERYTHING = CallKind.WRITES | CallKind.OPENS | CallKind.NAMES | CallKind.MOVES


def test_no_fault_strikes_unless_armed() -> None:
    faults = Faults(1)
    faults.inject(EVERYTHING)
    assert not any(faults.strikes(fault) for fault in FaultKind)
    assert faults.happened == 0


def test_armed_fault_strikes_up_to_its_limit() -> None:
    faults = Faults(1)
    faults.arm(FaultKind.BIT_FLIP, 1.0, limit=2)
    assert [faults.strikes(FaultKind.BIT_FLIP) for _ in range(3)] == [True, True, False]
    assert not faults.strikes(FaultKind.TORN_WRITE)
    assert faults.happened == 2


def test_faults_of_one_seed_strike_the_same_calls() -> None:
    runs = []
    for _ in range(2):
        faults = Faults(7)
        faults.arm(FaultKind.BIT_FLIP, 0.5)
        runs.append([faults.strikes(FaultKind.BIT_FLIP) for _ in range(50)])
    assert runs[0] == runs[1]
    assert {*runs[0]} == {True, False}


@pytest.mark.parametrize(
    ("fault", "call"),
    [
        (FaultKind.NO_SPACE, CallKind.WRITES),
        (FaultKind.IO_ERROR, CallKind.MOVES),
        (FaultKind.NO_DESCRIPTORS, CallKind.OPENS),
        (FaultKind.NO_PERMISSION, CallKind.NAMES),
        (FaultKind.PARTIAL, CallKind.NAMES),
    ],
)
def test_refusal_strikes_calls_that_can_meet_it(fault: FaultKind, call: CallKind) -> None:
    faults = Faults(1)
    faults.arm(fault, 1.0)
    with pytest.raises(OSError, match=r"\[Errno"):
        faults.inject(call)
    if fault is FaultKind.NO_SPACE:
        faults.inject(CallKind.OPENS)


def test_partial_batch_fails_all_later_calls() -> None:
    faults = Faults(1)
    faults.arm(FaultKind.PARTIAL, 1.0, limit=1)
    for _ in range(3):
        with pytest.raises(OSError, match=r"\[Errno"):
            faults.inject(CallKind.NAMES)
    faults.disarm()
    faults.inject(CallKind.NAMES)


def test_hanging_call_continues_after_disarm() -> None:
    faults = Faults(1)
    faults.arm(FaultKind.HUNG, 1.0)
    thread = threading.Thread(target=faults.inject, args=(CallKind.NAMES,), daemon=True)
    thread.start()
    assert faults.hanging.wait(10)
    assert thread.is_alive()
    faults.disarm()
    thread.join(10)
    assert not thread.is_alive()


def test_clock_steps_in_both_directions() -> None:
    faults = Faults(1)
    before_s = faults.clock.now_s()
    faults.clock.step(1000.0)
    assert faults.clock.now_s() >= before_s + 1000.0
    faults.clock.step(-5000.0)
    assert faults.clock.now_s() < before_s
    faults.arm(FaultKind.CLOCK_STEP, 1.0)
    before_s = faults.clock.now_s()
    faults.inject(CallKind.MOVES)
    assert abs(faults.clock.now_s() - before_s) > 5
