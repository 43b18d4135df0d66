"""Recovery from damaged logs and checkpoints: no wrong bytes, and the tier keeps working."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from kvtier.tiers.base import Outcome
from kvtier.tiers.disk.opening import capacity_for
from tests.tiers.disk.slabs import SLOT_BYTES, BrokenFiles, held, key, make, occupied, read, write

DONE = Outcome.DONE


def crashed(folder: Path, tmp_path: Path) -> Path:
    """Copy the folder as a process that dies now would leave it."""
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    return copy


def history(folder: Path) -> None:
    """Write a checkpoint of 0..7 and a log: 8..11 written, 0..1 deleted, 12..13 in their slots."""
    tier = make(folder)
    write(tier, range(8))
    tier.close()
    files = BrokenFiles()
    tier = make(folder, files=files)
    write(tier, range(8, 12))
    tier.delete([key(0), key(1)])
    write(tier, [12, 13])
    shutil.copytree(folder, folder.with_name("crashed"))
    tier.close()


def reopen_and_check(folder: Path) -> set[int]:
    """Return the blocks that read back right; check that the tier can be filled afterwards."""
    tier = make(folder)
    visible = held(tier)
    outcomes = dict(zip(sorted(visible), read(tier, sorted(visible)), strict=True))
    assert set(outcomes.values()) <= {DONE, Outcome.CORRUPT}
    right = {number for number, outcome in outcomes.items() if outcome is DONE}
    assert held(tier) == right
    fresh = range(100, 100 + 16 - len(right))
    assert write(tier, fresh) == [DONE] * len(fresh)
    assert read(tier, fresh) == [DONE] * len(fresh)
    tier.close()
    return right


def test_recovery_applies_log_on_top_of_checkpoint(tmp_path: Path) -> None:
    history(tmp_path / "slab")
    expected = set(range(2, 14))
    assert reopen_and_check(tmp_path / "slab") == expected
    assert reopen_and_check(tmp_path / "crashed") == expected


def test_recovery_from_log_cut_at_every_byte(tmp_path: Path) -> None:
    history(tmp_path / "slab")
    size = (tmp_path / "crashed" / "log").stat().st_size
    seen = set()
    for cut in (*range(0, size - 250, 20), *range(size - 250, size)):
        folder = crashed(tmp_path / "crashed", tmp_path)
        os.truncate(folder / "log", cut)
        right = reopen_and_check(folder)
        assert set(range(2, 8)) <= right <= set(range(14))
        seen.add(frozenset(right))
    assert len(seen) >= 6


@pytest.mark.parametrize("name", ["log", "checkpoint", "segment-00000"])
def test_recovery_from_flipped_bit_serves_no_wrong_bytes(tmp_path: Path, name: str) -> None:
    history(tmp_path / "slab")
    size = (tmp_path / "crashed" / name).stat().st_size
    for offset in range(0, size, max(1, size // 60)):
        folder = crashed(tmp_path / "crashed", tmp_path)
        with (folder / name).open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << offset % 8]))
        right = reopen_and_check(folder)
        assert right <= set(range(14))
        if name == "segment-00000":
            assert len(right) >= 11


@pytest.mark.parametrize("name", ["log", "checkpoint", "segment-00000"])
def test_recovery_without_one_file_keeps_the_rest(tmp_path: Path, name: str) -> None:
    history(tmp_path / "slab")
    (tmp_path / "crashed" / name).unlink()
    expected = {
        "log": set(range(2, 8)),  # 0 and 1 were overwritten: corrupt
        "checkpoint": set(range(8, 14)),
        "segment-00000": set(),
    }
    assert reopen_and_check(tmp_path / "crashed") == expected[name]


def test_log_older_than_checkpoint_is_not_applied(tmp_path: Path) -> None:
    history(tmp_path / "slab")
    shutil.copy(tmp_path / "crashed" / "log", tmp_path / "slab" / "log")
    tier = make(tmp_path / "slab")
    assert held(tier) == set(range(2, 14))
    tier.delete([key(9)])  # the old log says that it was written
    tier.close()
    shutil.copy(tmp_path / "crashed" / "log", tmp_path / "slab" / "log")
    assert reopen_and_check(tmp_path / "slab") == set(range(2, 14)) - {9}


def test_records_written_after_torn_tail_are_recovered(tmp_path: Path) -> None:
    history(tmp_path / "slab")
    folder = tmp_path / "crashed"
    with (folder / "log").open("ab") as log:
        log.write(b"half a frame")
    files = BrokenFiles()
    tier = make(folder, files=files)
    write(tier, [40, 41])
    files.errors["rename"] = errno.EIO  # so close writes no checkpoint
    tier.close()
    assert reopen_and_check(folder) == {*range(2, 14), 40, 41}


def test_smaller_capacity_discards_slots_outside(tmp_path: Path) -> None:
    folder = tmp_path / "slab"
    tier = make(folder, 32)
    write(tier, range(32))
    tier.close()
    tier = make(folder, 8)
    assert tier.capabilities.capacity_blocks == 8
    assert held(tier) == set(range(8))
    assert (folder / "segment-00000").stat().st_size == 8 * SLOT_BYTES
    assert write(tier, [50]) == [Outcome.FAILED]
    tier.close()
    tier = make(folder, 24)
    assert held(tier) == set(range(8))
    assert write(tier, range(60, 76)) == [DONE] * 16
    assert read(tier, [*range(8), *range(60, 76)]) == [DONE] * 24
    tier.close()


def test_log_of_larger_capacity_does_not_exceed_smaller_one(tmp_path: Path) -> None:
    folder = tmp_path / "slab"
    files = BrokenFiles()
    tier = make(folder, 2048, files=files)
    for start in range(0, 2048, 256):
        write(tier, range(start, start + 256))
    files.errors["rename"] = errno.EIO  # so close writes no checkpoint
    tier.close()
    assert (folder / "log").stat().st_size > 200_000
    tier = make(folder, 8)
    assert occupied(folder) <= capacity_for(8, SLOT_BYTES)
    assert read(tier, range(8)) == [DONE] * 8
    tier.close()
