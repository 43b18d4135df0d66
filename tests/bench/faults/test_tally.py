import logging
import threading

from kvtier.tiers.base import BlockMove, Outcome
from kvtier_bench.faults.places import CHAIN_KEYS, SLOTS
from kvtier_bench.faults.tally import Caller, Swallowed, Tally

ONE, OTHER = CHAIN_KEYS[0][:2]


def test_done_has_to_be_right() -> None:
    tally = Tally()
    tally.judge(
        [BlockMove(ONE, SLOTS[ONE]), BlockMove(ONE, SLOTS[OTHER])], [Outcome.DONE, Outcome.CORRUPT]
    )
    assert tally.wrong_bytes == 0
    tally.judge([BlockMove(ONE, SLOTS[OTHER])], [Outcome.DONE])
    assert tally.wrong_bytes == 1


def test_what_nobody_wrote_is_wrong_in_a_listing() -> None:
    tally = Tally()
    tally.listed([ONE, ONE], [ONE, OTHER])
    assert tally.wrong_bytes == 0
    tally.listed([OTHER], [ONE])
    assert tally.wrong_bytes == 1


def test_a_batch_has_as_many_outcomes_as_blocks() -> None:
    tally = Tally()
    tally.count([Outcome.DONE], 1)
    assert tally.exceptions == 0
    tally.count([Outcome.DONE], 2)
    assert tally.exceptions == 1


def test_a_bound_is_reached_but_not_passed() -> None:
    tally = Tally()
    tally.known(4, 4)
    assert tally.over_bound == 0
    tally.known(5, 4)
    assert tally.over_bound == 1


def test_a_call_may_neither_raise_nor_hang() -> None:
    tally, released = Tally(), threading.Event()
    caller = Caller(tally, released.set, deadline_s=0.05)
    assert caller.call(lambda: 3) == 3
    assert caller.call(lambda: 1 // 0) is None
    assert (tally.exceptions, tally.hangs) == (1, 0)
    assert "ZeroDivisionError" in tally.first_exception
    assert caller.call(released.wait) is None
    assert (tally.exceptions, tally.hangs) == (1, 1)
    assert released.is_set()
    assert caller.call(lambda: 4) == 4
    caller.close()


def test_what_is_logged_as_an_error_is_an_exception() -> None:
    tally = Tally()
    logger = logging.getLogger("kvtier.transfer.engine")
    with Swallowed(tally):
        logger.warning("blocks are missed")
        assert tally.exceptions == 0
        logger.error("tier failed")
    logger.error("afterwards")
    assert (tally.exceptions, tally.first_exception) == (1, "tier failed")
