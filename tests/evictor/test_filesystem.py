import shutil
from pathlib import Path

import pytest

from kvtier.clock import VirtualClock
from kvtier.evictor.filesystem import PENDING_S, PendingSpace, measure, mounts_below


def test_as_df_says(tmp_path: Path) -> None:
    found, other = measure(tmp_path), shutil.disk_usage(tmp_path)
    assert found.used_bytes == pytest.approx(other.used, rel=0.01)
    assert found.total_bytes == pytest.approx(other.used + other.free, rel=0.01)


def test_what_is_mounted_below(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    below = str(tmp_path.resolve())
    table.write_text(
        "".join(
            f"36 35 98:0 / {point} rw,noatime master:1 - ext4 /dev/root rw\n"
            for point in ("/", below, f"{below}-other", f"{below}/b\\040c/d", f"{below}/a")
        )
    )
    assert mounts_below(tmp_path, table) == ["a", "b c/d"]
    assert mounts_below(tmp_path, tmp_path / "none") == []
    assert "proc" in mounts_below(Path("/"))


def test_what_is_not_free_yet_is_not_removed_again() -> None:
    clock = VirtualClock()
    reclaim = PendingSpace(clock)
    assert reclaim.expected(1000) == 1000
    reclaim.removed(300, 1000)
    clock.advance(10)
    assert reclaim.expected(1000) == 700
    reclaim.removed(0, 1000)
    assert reclaim.expected(900) == 700, "a part became free"
    assert reclaim.expected(950) == 750, "somebody writes"
    assert reclaim.expected(700) == 700
    assert reclaim.expected(720) == 720


def test_what_never_becomes_free_is_used() -> None:
    clock = VirtualClock()
    reclaim = PendingSpace(clock)
    reclaim.expected(1000)
    reclaim.removed(300, 1000)
    clock.advance(PENDING_S + 1)
    assert reclaim.expected(1000) == 1000


def test_what_is_free_at_once_is_not_waited_for() -> None:
    reclaim = PendingSpace(VirtualClock())
    reclaim.expected(1000)
    reclaim.removed(300, 700)
    assert reclaim.expected(800) == 800
