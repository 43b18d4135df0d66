"""The benchmark of the RAM tier returns its rows and checks the bytes it moves."""

import numpy as np
import pytest

from kvtier_bench.micro import ram
from kvtier_bench.micro.parts import ram_cache


def test_ram_rows_are_put_and_get_of_every_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ram, "_ARENA_BYTES", 16 << 20)
    monkeypatch.setattr(ram, "SIZES", ((64 << 10, "64 KiB", 0.75),))
    monkeypatch.setattr(ram, "_ROUNDS", 2)
    names = [row.name for row in ram.measure_ram()]
    assert [name.split(",")[0] for name in names] == [
        "RAM put",
        "RAM get",
        "bookkeeping per block",
        "bookkeeping per block",
    ]


def test_get_asks_only_for_batches_that_were_not_evicted() -> None:
    for batches in (4, 7, 8, 32):
        cache = ram_cache(batches * 32, 4096)
        blocks = np.zeros((batches * 16, 4096), np.uint8)
        exercise = ram._Exercise(cache, blocks, np.zeros_like(blocks))
        for _ in range(batches):
            exercise.put()
        for _ in range(100):
            exercise.put()
            exercise.get()
        assert cache.counters.tiers[0].hit_blocks == 100 * 32
        cache.close()


def test_verify_fails_for_a_wrong_byte() -> None:
    cache = ram_cache(128, 4096)
    source = np.random.default_rng(0).integers(0, 256, (64, 4096), np.uint8)
    exercise = ram._Exercise(cache, source, np.zeros_like(source))
    exercise.verify()
    original = cache.end_save

    def end_save_and_spoil(save: object, *args: object) -> None:
        original(save, *args)  # type: ignore[arg-type]
        cache.arena.array[save.slots[0], 7] ^= 1  # type: ignore[attr-defined]

    cache.end_save = end_save_and_spoil  # type: ignore[method-assign, assignment]
    with pytest.raises(AssertionError):
        exercise.verify()
    cache.close()
