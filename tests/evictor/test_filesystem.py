import shutil
from pathlib import Path

import pytest

from kvtier.clock import VirtualClock
from kvtier.evictor.filesystem import PENDING_S, PendingSpace, measure, mounts_below


def test_measure_matches_df(tmp_path: Path) -> None:
    found, other = measure(tmp_path), shutil.disk_usage(tmp_path)
    assert found.used_bytes == pytest.approx(other.used, rel=0.01)
    assert found.total_bytes == pytest.approx(other.used + other.free, rel=0.01)


def test_mounts_below_folder(tmp_path: Path) -> None:
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


def test_pending_space_counts_as_free() -> None:
    clock = VirtualClock()
    pending = PendingSpace(clock)
    assert pending.expected(1000) == 1000
    pending.removed(300, 1000)
    clock.advance(10)
    assert pending.expected(1000) == 700
    pending.removed(0, 1000)
    assert pending.expected(900) == 700, "a part has become free"
    assert pending.expected(950) == 750, "new files were written"
    assert pending.expected(700) == 700
    assert pending.expected(720) == 720


def test_pending_space_expires() -> None:
    clock = VirtualClock()
    pending = PendingSpace(clock)
    pending.expected(1000)
    pending.removed(300, 1000)
    clock.advance(PENDING_S + 1)
    assert pending.expected(1000) == 1000


def test_pending_space_is_empty_when_freed_at_once() -> None:
    pending = PendingSpace(VirtualClock())
    pending.expected(1000)
    pending.removed(300, 700)
    assert pending.expected(800) == 800
