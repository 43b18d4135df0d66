"""The benchmark of the index has rows for each size that fits into memory."""

import pytest

from kvtier_bench.micro import index


def test_index_rows_have_their_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "HELD", (10**4,))
    rows = index.measure_index()
    assert [row.target for row in rows] == ["<= 0.2", None]
    assert all(row.value > 0 for row in rows)


def test_index_larger_than_memory_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "memory_available", lambda: 10**6)
    assert index.measure_index() == []
