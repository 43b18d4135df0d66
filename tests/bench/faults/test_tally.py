import logging
import threading

from kvtier.tiers.base import BlockMove, Outcome
from kvtier_bench.faults.places import CHAIN_KEYS, SLOTS
from kvtier_bench.faults.tally import Caller, LoggedErrors, Tally

ONE, OTHER = CHAIN_KEYS[0][:2]


def test_done_blocks_with_wrong_bytes_are_counted() -> None:
    tally = Tally()
    tally.check_read(
        [BlockMove(ONE, SLOTS[ONE]), BlockMove(ONE, SLOTS[OTHER])], [Outcome.DONE, Outcome.CORRUPT]
    )
    assert tally.wrong_bytes == 0
    tally.check_read([BlockMove(ONE, SLOTS[OTHER])], [Outcome.DONE])
    assert tally.wrong_bytes == 1


def test_listed_key_that_was_never_written_is_counted() -> None:
    tally = Tally()
    tally.check_listing([ONE, ONE], [ONE, OTHER])
    assert tally.wrong_bytes == 0
    tally.check_listing([OTHER], [ONE])
    assert tally.wrong_bytes == 1


def test_wrong_number_of_outcomes_is_counted() -> None:
    tally = Tally()
    tally.count([Outcome.DONE], 1)
    assert tally.exceptions == 0
    tally.count([Outcome.DONE], 2)
    assert tally.exceptions == 1


def test_known_blocks_above_the_bound_are_counted() -> None:
    tally = Tally()
    tally.check_bound(4, 4)
    assert tally.over_bound == 0
    tally.check_bound(5, 4)
    assert tally.over_bound == 1


def test_calls_that_raise_or_hang_are_counted() -> None:
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


def test_logged_error_is_counted_as_exception() -> None:
    tally = Tally()
    logger = logging.getLogger("kvtier.transfer.engine")
    with LoggedErrors(tally):
        logger.warning("blocks are missed")
        assert tally.exceptions == 0
        logger.error("tier failed")
    logger.error("afterwards")
    assert (tally.exceptions, tally.first_exception) == (1, "tier failed")
