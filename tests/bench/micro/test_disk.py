"""The benchmark of the disk tier compares with a raw slab and checks the bytes."""

from pathlib import Path

import pytest

from kvtier_bench.micro import disk


def test_disk_rows_are_read_and_write_and_no_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "SIZES", ((64 << 10, "64 KiB"),))
    monkeypatch.setattr(disk, "_BATCH_BYTES", 1 << 20)
    monkeypatch.setattr(disk, "_ROUNDS", 2)
    rows = disk.measure_disk(tmp_path)
    assert [row.name.split(",")[0] for row in rows] == ["disk read", "disk write"]
    assert all(row.ratio and row.target == ">= 0.9" for row in rows)
    assert list(tmp_path.iterdir()) == []
