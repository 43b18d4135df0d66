"""The row of the arena names the size that was used."""

import pytest

from kvtier_bench.micro import ram


def test_arena_is_smaller_on_a_machine_with_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram, "memory_available", lambda: 2 << 30)
    monkeypatch.setattr(ram, "_SLOT_BYTES", 4096)
    (row,) = ram.measure_arena()
    assert row.name.startswith("arena of 1 GiB")
    assert row.unit == "s"
    assert row.met is not None
