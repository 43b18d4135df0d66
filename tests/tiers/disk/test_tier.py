"""The disk tier: the contract of tiers, and its own guarantees under faults."""

import contextlib
import errno
import logging
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvtier.blocks.key import BlockKey
from kvtier.clock import VirtualClock
from kvtier.testing.tiers import TierContract
from kvtier.tiers.base import BlockMove, Outcome, Tier
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.disk.opening import capacity_for
from kvtier.tiers.faults import QUIET_S
from tests.tiers.disk.slabs import (
    LAYOUT,
    SLOT_BYTES,
    BrokenFiles,
    content,
    held,
    key,
    make,
    occupied,
    read,
    write,
)

DONE, MISSING, FAILED = Outcome.DONE, Outcome.MISSING, Outcome.FAILED


class TestDiskTier(TierContract):
    direct = "auto"

    def make_tier(self, folder: Path, capacity_blocks: int) -> Tier:
        return make(folder / "slab", capacity_blocks, self.layout, direct=self.direct)

    def corrupt(self, tier: Tier, folder: Path, block: BlockKey) -> None:
        assert isinstance(tier, DiskTier)
        flip_bit(folder / "slab" / "segment-00000", slot_of(tier, block), self.layout.slot_bytes)


class TestDiskTierThroughThePageCache(TestDiskTier):
    direct = "never"


def slot_of(tier: DiskTier, block: BlockKey) -> int:
    return tier._slots.slot_of[block]


def flip_bit(segment: Path, slot: int, slot_bytes: int) -> None:
    with segment.open("r+b") as file:
        file.seek(slot * slot_bytes + 77)
        byte = file.read(1)[0]
        file.seek(slot * slot_bytes + 77)
        file.write(bytes([byte ^ 4]))
        os.fsync(file.fileno())


def test_swapped_slots_are_corrupt(tmp_path: Path) -> None:
    tier = make(tmp_path / "slab", direct="never")
    write(tier, [1, 2])
    one, two = (slot_of(tier, key(n)) for n in (1, 2))
    with (tmp_path / "slab" / "segment-00000").open("r+b") as file:
        data = file.read()
        blocks = [data[i * SLOT_BYTES : (i + 1) * SLOT_BYTES] for i in (one, two)]
        for slot, block in zip((two, one), blocks, strict=True):
            file.seek(slot * SLOT_BYTES)
            file.write(block)
    assert read(tier, [1, 2]) == [Outcome.CORRUPT] * 2
    assert tier.counters.corruptions == 2
    assert held(tier) == set()
    tier.close()


def test_capacity_bounds_bytes_on_device(tmp_path: Path) -> None:
    folder = tmp_path / "slab"
    tier = make(folder, 64)
    bound = capacity_for(64, SLOT_BYTES)
    peak = 0
    for turn in range(60):
        numbers = list(range(turn * 64, turn * 64 + 64))
        assert write(tier, numbers) == [DONE] * 64
        peak = max(peak, occupied(folder))
        tier.delete([key(n) for n in numbers])
    tier.close()
    assert max(peak, occupied(folder)) <= bound
    assert (folder / "checkpoint").exists(), "the log should have been folded meanwhile"


def test_unaligned_buffers_go_through_page_cache(tmp_path: Path) -> None:
    tier = make(tmp_path / "slab")
    room = np.zeros(SLOT_BYTES + 1, np.uint8)
    odd = room[1:]
    np.copyto(odd, content(3))
    assert tier.write_from([BlockMove(key(3), odd)], [None]) == [DONE]
    assert read(tier, [3]) == [DONE]
    odd.fill(0)
    assert tier.read_into([BlockMove(key(3), odd)]) == [DONE]
    assert np.array_equal(odd[: LAYOUT.block_bytes], content(3)[: LAYOUT.block_bytes])
    tier.close()


def test_buffer_of_wrong_size_fails(tmp_path: Path) -> None:
    tier = make(tmp_path / "slab")
    write(tier, [1, 2, 3])
    small, large = content(9)[:512], np.zeros(2 * SLOT_BYTES, np.uint8)
    assert (
        tier.write_from([BlockMove(key(4), small), BlockMove(key(5), large)], [None] * 2)
        == [FAILED] * 2
    )
    assert tier.read_into([BlockMove(key(1), small), BlockMove(key(2), large)]) == [FAILED] * 2
    assert read(tier, [1, 2, 3]) == [DONE] * 3
    tier.close()


def test_write_with_key_over_limit_fails(tmp_path: Path) -> None:
    tier = make(tmp_path / "slab")
    long = BlockKey(b"x" * 73)
    assert (
        tier.write_from([BlockMove(long, content(1)), BlockMove(key(1), content(1))], [None, long])
        == [FAILED] * 2
    )
    assert tier.write_from([BlockMove(BlockKey(b"x" * 72), content(1))], [None]) == [DONE]
    tier.close()


def test_repeated_key_in_batch_takes_one_slot(tmp_path: Path) -> None:
    tier = make(tmp_path / "slab", 4)
    assert write(tier, [1, 1, 2, 1]) == [DONE] * 4
    assert write(tier, [3, 4, 3, 5]) == [DONE, DONE, DONE, FAILED]
    tier.close()


def test_slot_deleted_during_read_is_not_reused(tmp_path: Path) -> None:
    files = BrokenFiles()
    tier = make(tmp_path / "slab", 4, files=files)
    write(tier, [1, 2, 3, 4])
    during: list[list[Outcome]] = []
    real = files.preadv

    def preadv(*call: object) -> int:
        tier.delete([key(1)])
        during.append(write(tier, [9]))
        return real(*call)  # type: ignore[arg-type]

    files.preadv = preadv  # type: ignore[method-assign]
    assert read(tier, [1]) == [DONE]
    assert during == [[FAILED]], "the only free slot is being read"
    files.preadv = real  # type: ignore[method-assign]
    assert write(tier, [9]) == [DONE]
    assert read(tier, [1, 9]) == [MISSING, DONE]
    tier.close()


def test_close_waits_for_read_in_flight(tmp_path: Path) -> None:
    files = BrokenFiles()
    tier = make(tmp_path / "slab", files=files)
    write(tier, [1])
    closing = threading.Thread(target=tier.close)
    real = files.preadv

    def preadv(*call: object) -> int:
        closing.start()
        closing.join(0.05)
        assert closing.is_alive(), "close did not wait for the read"
        return real(*call)  # type: ignore[arg-type]

    files.preadv = preadv  # type: ignore[method-assign]
    assert read(tier, [1]) == [DONE]
    closing.join()
    assert read(tier, [1]) == [MISSING]


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EROFS, errno.ENODEV])
def test_read_errors_are_failed_and_recover(
    tmp_path: Path, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    files, clock = BrokenFiles(), VirtualClock()
    tier = make(tmp_path / "slab", files=files, clock=clock)
    write(tier, [1, 2, 3])
    files.errors["preadv"] = code
    with caplog.at_level(logging.WARNING):
        assert read(tier, [1, 2, 3]) == [FAILED] * 3
        assert read(tier, [1, 2, 3]) == [FAILED] * 3
        assert len(caplog.messages) == 1
        assert tier.counters.faults == 6
        files.errors.clear()
        clock.advance(QUIET_S)
        assert read(tier, [1, 2, 3]) == [DONE] * 3
        assert len(caplog.messages) == 2
    tier.close()


@pytest.mark.parametrize("call", ["pwritev", "allocate", "open", "write"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE])
def test_write_errors_are_failed_and_recover(
    tmp_path: Path, call: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    files, clock = BrokenFiles(), VirtualClock()
    tier = make(tmp_path / "slab", 4, files=files, clock=clock)
    files.errors[call] = code
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert write(tier, [1, 2, 3, 4]) == [FAILED] * 4
        assert held(tier) == set()
        assert len(caplog.messages) == 1
        files.errors.clear()
        clock.advance(QUIET_S)
        assert write(tier, [1, 2, 3, 4]) == [DONE] * 4, "a slot was lost"
        assert len(caplog.messages) == 2
    tier.close()


@pytest.mark.parametrize("limit", [1, 100, 4096, 5000])
def test_short_reads_and_writes_are_continued(tmp_path: Path, limit: int) -> None:
    files = BrokenFiles()
    tier = make(tmp_path / "slab", files=files)
    files.short = {"pwritev": max(limit, 100), "preadv": max(limit, 100)}
    assert write(tier, [1, 2, 3]) == [DONE] * 3
    assert read(tier, [1, 2, 3]) == [DONE] * 3
    tier.close()


def test_writes_of_zero_bytes_are_failed(tmp_path: Path) -> None:
    files = BrokenFiles()
    tier = make(tmp_path / "slab", files=files)
    files.short["pwritev"] = 0
    assert write(tier, [1, 2]) == [FAILED] * 2
    files.short.clear()
    assert write(tier, [1, 2]) == [DONE] * 2
    tier.close()


def test_blocks_after_end_of_file_are_corrupt_and_slots_reusable(
    tmp_path: Path,
) -> None:
    tier = make(tmp_path / "slab", 8)
    write(tier, range(8))
    os.truncate(tmp_path / "slab" / "segment-00000", 3 * SLOT_BYTES + 100)
    assert read(tier, range(8)) == [DONE] * 3 + [Outcome.CORRUPT] * 5
    assert held(tier) == {0, 1, 2}
    assert write(tier, range(10, 15)) == [DONE] * 5
    assert read(tier, range(10, 15)) == [DONE] * 5
    tier.close()


def test_unrecorded_deletion_keeps_its_slot(tmp_path: Path) -> None:
    files = BrokenFiles()
    tier = make(tmp_path / "slab", 4, files=files)
    write(tier, [1, 2, 3, 4])
    files.errors["write"] = errno.ENOSPC
    assert tier.delete([key(1), key(2)]) == [DONE] * 2
    assert held(tier) == {3, 4}
    assert write(tier, [5]) == [FAILED]
    files.errors.clear()
    assert write(tier, [5, 6]) == [DONE] * 2
    tier.close()
    tier = make(tmp_path / "slab", 4)
    assert held(tier) == {3, 4, 5, 6}
    assert read(tier, [3, 4, 5, 6]) == [DONE] * 4
    tier.close()


def test_torn_log_record_is_cut_off(tmp_path: Path) -> None:
    files = BrokenFiles()
    tier = make(tmp_path / "slab", files=files)
    write(tier, [1])
    files.short["write"] = 60
    assert write(tier, [2, 3]) == [FAILED] * 2
    files.errors["truncate"] = errno.EIO
    assert write(tier, [2, 3]) == [FAILED] * 2
    files.short.clear()
    assert write(tier, [4]) == [FAILED], "a record was appended after a torn frame"
    files.errors.clear()
    assert write(tier, [5]) == [DONE]
    files.errors["rename"] = errno.EIO  # so close writes no checkpoint, and the log must suffice
    tier.close()
    tier = make(tmp_path / "slab")
    assert held(tier) == {1, 5}
    tier.close()


@pytest.mark.parametrize("call", ["open", "write", "sync_data", "rename", "truncate"])
def test_failed_checkpoint_loses_nothing(tmp_path: Path, call: str) -> None:
    files = BrokenFiles()
    tier = make(tmp_path / "slab", 64, files=files)
    numbers = range(64)
    write(tier, numbers)
    files.errors[call] = errno.ENOSPC
    seen_full = False
    for _ in range(40):  # until the log is full
        deleted = tier.delete([key(n) for n in range(32)])
        again = write(tier, range(32))
        seen_full |= FAILED in again
        assert set(deleted) <= {DONE, MISSING}
    assert seen_full
    assert read(tier, range(32, 64)) == [DONE] * 32
    files.errors.clear()
    assert write(tier, range(32)) == [DONE] * 32
    tier.close()
    tier = make(tmp_path / "slab", 64)
    assert read(tier, numbers) == [DONE] * 64
    tier.close()


def test_removed_folder_fails_calls_and_new_folder_stays_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "slab"
    tier = make(folder, 8)
    write(tier, [1, 2])
    shutil.rmtree(folder)
    folder.mkdir()
    assert set(read(tier, [1, 2])) <= {DONE, FAILED}
    write(tier, [3])
    tier.close()
    assert list(folder.iterdir()) == []
    tier = make(folder, 8)
    assert held(tier) == set()
    assert write(tier, [1]) == [DONE]
    tier.close()


def test_file_size_limit_fails_writes(tmp_path: Path) -> None:
    tier = make(tmp_path / "slab", 512)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        assert write(tier, [1, 2]) == [FAILED] * 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tier.counters.faults == 1
    assert write(tier, [1, 2]) == [DONE] * 2
    tier.close()


def test_counters_count_payload(tmp_path: Path) -> None:
    tier = make(tmp_path / "slab")
    write(tier, [1, 2])
    read(tier, [1, 7])
    assert tier.counters.bytes_written == 2 * LAYOUT.block_bytes
    assert tier.counters.bytes_read == LAYOUT.block_bytes
    tier.close()


def test_files_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "slab"
    tier = make(folder)
    write(tier, [1])
    tier.close()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of 2 MiB, which can really be filled."""
    mount = tmp_path / "mount"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "kvtier-test", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_full_file_system_fails_writes_until_there_is_room(small_disk: Path) -> None:
    tier = make(small_disk / "slab", 256)
    others = small_disk / "others"
    fd = os.open(others, os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while True:
            os.write(fd, bytes(4096))
    os.close(fd)
    assert write(tier, range(8)) == [FAILED] * 8
    assert tier.counters.faults == 1
    others.unlink()
    assert write(tier, range(8)) == [DONE] * 8
    assert read(tier, range(8)) == [DONE] * 8
    tier.close()
