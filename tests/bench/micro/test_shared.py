"""The benchmark of the shared tier compares with raw files and checks the bytes."""

from pathlib import Path

import pytest

from kvtier_bench.micro import shared


def test_shared_rows_are_measured_and_no_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "SIZES", ((1 << 20, "1 MiB"),))
    monkeypatch.setattr(shared, "_BATCH_BYTES", 8 << 20)
    monkeypatch.setattr(shared, "_ROUNDS", 2)
    rows = shared.measure_shared(tmp_path)
    assert [row.name.split(",")[0] for row in rows] == [
        "shared read",
        "shared write",
        "shared write",
        "shared read",
    ]
    assert all(row.ratio and row.target for row in rows)
    assert list(tmp_path.iterdir()) == []
