"""Each kind of fault is told once, and once more when it is over."""

import errno
import logging

import pytest

from kvtier.clock import VirtualClock
from kvtier.tiers.faults import QUIET_S, FaultLog


def test_one_line_a_kind_until_it_goes_away(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    faults = FaultLog("disk tier /slab", clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            faults.report("read", OSError(errno.EIO, "bad sector"))
        faults.report("read", OSError(errno.EACCES, "not yours"))
        faults.report("write", OSError(errno.EIO, "bad sector"))
        assert [line.split(": ")[1].split(" (")[0] for line in caplog.messages] == [
            "read failed",
            "read failed",
            "write failed",
        ]
        faults.works("read")
        assert len(caplog.messages) == 3, "too early to say"
        clock.advance(QUIET_S)
        faults.works("read")
        faults.works("read")
        assert caplog.messages[3:] == [
            "disk tier /slab: read works again after EIO 5 times, EACCES 1 times"
        ]
        faults.report("read", OSError(errno.EIO, "bad sector"))
        assert len(caplog.messages) == 5
    assert faults.count == 8


def test_one_bad_sector_among_good_ones_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    faults = FaultLog("disk tier /slab", clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            faults.report("read", OSError(errno.EIO, "bad sector"))
            clock.advance(QUIET_S / 2)
            faults.works("read")
    assert len(caplog.messages) == 1
