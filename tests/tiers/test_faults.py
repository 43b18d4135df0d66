"""The log of faults: one line per kind, and one when it is over."""

import errno
import logging

import pytest

from kvtier.clock import VirtualClock
from kvtier.tiers.faults import QUIET_S, FaultLog


def test_fault_log_writes_one_line_per_kind_until_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
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
        faults.succeeded("read")
        assert len(caplog.messages) == 3, "QUIET_S has not passed"
        clock.advance(QUIET_S)
        faults.succeeded("read")
        faults.succeeded("read")
        assert caplog.messages[3:] == [
            "disk tier /slab: read works again after EIO 5 times, EACCES 1 times"
        ]
        faults.report("read", OSError(errno.EIO, "bad sector"))
        assert len(caplog.messages) == 5
    assert faults.count == 8


def test_fault_log_of_one_bad_sector_writes_one_line(caplog: pytest.LogCaptureFixture) -> None:
    clock = VirtualClock()
    faults = FaultLog("disk tier /slab", clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            faults.report("read", OSError(errno.EIO, "bad sector"))
            clock.advance(QUIET_S / 2)
            faults.succeeded("read")
    assert len(caplog.messages) == 1
