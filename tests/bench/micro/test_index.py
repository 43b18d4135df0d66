"""The index measurement: rows per size, and only sizes the machine can hold."""

import pytest

from kvtier_bench.micro import index


def test_lookups_and_memory_have_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "HELD", (10**4,))
    rows = index.measure_index()
    assert [row.target for row in rows] == ["<= 0.2", None]
    assert all(row.value > 0 for row in rows)


def test_a_size_the_machine_cannot_hold_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "memory_available", lambda: 10**6)
    assert index.measure_index() == []
