"""Opening a slab: what is refused and logged, and that a refusal leaves nothing locked."""

import errno
import logging
import os
from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.tiers.disk import DiskTier
from tests.tiers.disk.slabs import LAYOUT, SPACE, BrokenFiles, make, other_space, write


def test_direct_io_depends_on_folder_and_setting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        make(tmp_path / "a", direct="never").close()
        assert caplog.messages[-1].endswith("0 of 16 blocks found, page cache (no O_DIRECT)")
        files = BrokenFiles()
        files.errors["pwritev"] = errno.EINVAL
        make(tmp_path / "b", files=files).close()
        assert caplog.messages[-1].endswith("page cache (no O_DIRECT)")
        with pytest.raises(InvalidSettings, match=r"disk\.direct_io: .*no O_DIRECT"):
            make(tmp_path / "c", direct="always", files=files)


def test_recovery_result_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tier = make(tmp_path / "slab")
    write(tier, [1, 2, 3])
    tier.close()
    with (tmp_path / "slab" / "log").open("ab") as log:
        log.write(b"torn")
    with caplog.at_level(logging.INFO):
        make(tmp_path / "slab", 16).close()
    assert "3 of 16 blocks found" in caplog.text
    assert "discarded 0 records outside the slab, cut 4 bytes off the log" in caplog.text


def test_second_tier_in_folder_is_refused(tmp_path: Path) -> None:
    first = make(tmp_path / "slab")
    with pytest.raises(InvalidSettings, match=f"in use by process {os.getpid()}"):
        make(tmp_path / "slab", on_mismatch="replace")
    first.close()


def test_slab_of_another_model_is_refused_or_replaced(tmp_path: Path) -> None:
    tier = make(tmp_path / "slab")
    write(tier, [1])
    tier.close()
    other = other_space(model="big")
    with pytest.raises(InvalidSettings, match="model: 'big' != 'tiny'"):
        DiskTier(tmp_path / "slab", 1 << 20, LAYOUT, other)
    tier = DiskTier(tmp_path / "slab", 1 << 20, LAYOUT, other, on_mismatch="replace")
    assert tier.scan().blocks == []
    tier.close()
    with pytest.raises(InvalidSettings, match="model: 'tiny' != 'big'"):
        make(tmp_path / "slab")


@pytest.mark.parametrize("call", ["open", "write", "sync_data", "rename"])
def test_io_error_at_start_is_refused_and_lock_released(tmp_path: Path, call: str) -> None:
    files = BrokenFiles()
    files.errors[call] = errno.EIO
    with pytest.raises(InvalidSettings, match=r"disk\.path: .*cannot be used"):
        make(tmp_path / "slab", files=files)
    files.errors.clear()
    tier = make(tmp_path / "slab", files=files)  # the lock was released
    assert tier.capabilities.capacity_blocks == 16
    tier.close()
    assert SPACE.digest
