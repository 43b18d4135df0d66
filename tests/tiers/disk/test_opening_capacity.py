"""The capacity in bytes: how it becomes slots, and when it is refused."""

import os
from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.tiers.disk import opening
from tests.tiers.disk.slabs import LAYOUT, SPACE, make


@pytest.mark.parametrize("slots", [4, 5, 1000, 10**7])
@pytest.mark.parametrize("slot_bytes", [4096, 65536, 1 << 22])
def test_capacity_for_is_inverse_of_divide(slots: int, slot_bytes: int) -> None:
    bound = opening.capacity_for(slots, slot_bytes)
    assert opening.divide(bound, slot_bytes).slots == slots
    assert opening.divide(bound + slot_bytes, slot_bytes).slots == slots
    if slots > opening.SLOTS_MIN:
        assert opening.divide(bound - 1, slot_bytes).slots == slots - 1


def test_large_capacity_is_almost_all_blocks() -> None:
    slots = opening.divide(100 << 30, 65536).slots
    assert slots * 65536 > 0.99 * (100 << 30)


def test_small_capacity_is_refused_with_minimum() -> None:
    with pytest.raises(InvalidSettings, match=r"disk\.capacity: .* set at least (\d+)") as refused:
        opening.divide(1000, 4096)
    least = int(str(refused.value).rsplit(" ", 1)[1])
    assert opening.divide(least, 4096).slots == opening.SLOTS_MIN


def test_segment_slots_keep_segments_few() -> None:
    assert opening.segment_slots(10 << 30, 1 << 20) == 1024
    assert opening.segment_slots(10 << 40, 1 << 20) == 10 * 8192
    assert opening.segment_slots(1 << 30, 3 << 30) == 1


def test_capacity_over_free_space_is_refused(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    blocks = 2 * free // LAYOUT.slot_bytes
    with pytest.raises(InvalidSettings, match=r"disk\.capacity: .*more than the file system"):
        make(tmp_path / "slab", blocks)
    assert SPACE.digest


def test_require_room_counts_occupied_bytes(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    stat = os.fstatvfs(fd)
    free = stat.f_bavail * stat.f_frsize
    opening.require_room(fd, 1 << 40, free // 2 + (1 << 40))
    with pytest.raises(InvalidSettings):
        opening.require_room(fd, 0, free // 2 + (1 << 40))
    os.close(fd)
