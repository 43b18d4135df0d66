"""The RAM tier: put and get compared with `numpy.copyto`, its bookkeeping, and arena startup."""

import statistics
from collections.abc import Callable

import numpy as np

from kvtier.cache.core import TieredCache
from kvtier.clock import perf_s
from kvtier.memory.arena import Arena
from kvtier_bench.micro.index import memory_available
from kvtier_bench.micro.parts import BATCH, Blocks, chain, fill, parents, ram_cache
from kvtier_bench.micro.timing import interleave, throughput
from kvtier_bench.rows import Row, Target, measured

SIZES = ((64 << 10, "64 KiB", 0.75), (1 << 20, "1 MiB", 0.90), (4 << 20, "4 MiB", 0.90))
_ARENA_BYTES = 1 << 30
_ROUNDS = 31
_SLOT_BYTES = 4 << 20


def measure_ram() -> list[Row]:
    """Return rows for every block size, and for the bookkeeping alone."""
    rows: list[Row] = []
    for size, label, target in SIZES:
        rows += _throughput(size, label, target)
    return rows + _bookkeeping()


def _throughput(size: int, label: str, target: float) -> list[Row]:
    slots = _ARENA_BYTES // size
    cache = ram_cache(slots, size)
    source: Blocks = np.empty((slots // 2, size), np.uint8)
    fill(source)
    bare: Blocks = np.zeros((slots // 2, size), np.uint8)
    exercise = _Exercise(cache, source, bare)
    for _ in range(slots // BATCH):
        exercise.put()
    seconds = interleave(
        {
            "copy in": exercise.copy,
            "put": exercise.put,
            "copy out": exercise.copy,
            "get": exercise.get,
        },
        _ROUNDS,
    )
    exercise.verify()
    cache.close()
    return [
        throughput(
            f"RAM {ours}, {label}, batches of {BATCH}, share of numpy.copyto",
            BATCH * size,
            seconds[ours],
            seconds[reference],
            Target(">=", target),
        )
        for ours, reference in (("put", "copy in"), ("get", "copy out"))
    ]


class _Exercise:
    """Batches that are put into and got from a cache, and the same copies without a cache."""

    def __init__(self, cache: TieredCache, source: Blocks, bare: Blocks) -> None:
        self._cache = cache
        self._source = source
        self._bare = bare
        self._number = 0
        self._at = 0
        self._asked = 0

    def _window(self) -> range:
        self._at = (self._at + BATCH) % (len(self._source) - BATCH)
        return range(self._at, self._at + BATCH)

    def copy(self) -> None:
        source, bare = self._source, self._bare
        for i in self._window():
            np.copyto(bare[i - BATCH], source[i])

    def put(self) -> None:
        self._number += 1
        keys = chain(self._number, BATCH)
        save = self._cache.begin_save(keys, parents(keys))
        assert save is not None
        source, array = self._source, self._cache.arena.array
        for i, slot in zip(self._window(), save.slots, strict=True):
            np.copyto(array[slot], source[i])
        self._cache.end_save(save)
        self._cache.take_events()

    def get(self) -> None:
        # The newest batch would be in the CPU's cache. Batches within `span` were not evicted: each
        # put and each get since then made at most one other batch more recent.
        span = max(1, self._cache.arena.slots // BATCH // 2 - 1)
        self._asked = (self._asked + 12) % span + 1
        keys = chain(self._number - self._asked, BATCH)
        load = self._cache.begin_load("bench", keys)
        assert load is not None
        target, array = self._bare, self._cache.arena.array
        for i, slot in zip(self._window(), load.slots, strict=True):
            np.copyto(target[i - BATCH], array[slot])
        self._cache.end_load(load)

    def verify(self) -> None:
        """Put a batch, and check that the cache has the bytes of the source."""
        self.put()
        window = range(self._at, self._at + BATCH)
        load = self._cache.begin_load("bench", chain(self._number, BATCH))
        assert load is not None
        for i, slot in zip(window, load.slots, strict=True):
            assert np.array_equal(self._cache.arena.array[slot], self._source[i])
        self._cache.end_load(load)


def _bookkeeping() -> list[Row]:
    slots = 8192
    cache = ram_cache(slots, 4096)
    batches = [chain(number, BATCH) for number in range(4 * slots // BATCH)]
    ancestors = [parents(keys) for keys in batches]
    at = 0

    def put() -> None:
        nonlocal at
        at = (at + 1) % len(batches)
        save = cache.begin_save(batches[at], ancestors[at])
        assert save is not None
        cache.end_save(save)
        cache.take_events()

    def get() -> None:
        load = cache.begin_load("bench", batches[at])
        assert load is not None
        cache.end_load(load)

    for _ in range(slots // BATCH):
        put()
    seconds = interleave({"put": _times(put, 20), "get": _times(get, 20)}, _ROUNDS)
    cache.close()
    return [
        measured(
            f"bookkeeping per block, batched {verb}",
            statistics.median(times) / 20 / BATCH * 1e6,
            "us",
            target=Target("<=", 5),
            note="the arena is full: every put evicts" if verb == "put" else "",
        )
        for verb, times in seconds.items()
    ]


def _times(call: Callable[[], None], count: int) -> Callable[[], None]:
    def repeat() -> None:
        for _ in range(count):
            call()

    return repeat


def measure_arena() -> list[Row]:
    """Return the row of an arena of 8 GiB, or of a smaller one, named so, if memory is short."""
    gibibytes = min(8, memory_available() // (1 << 30) // 2)
    seconds: list[float] = []
    for _ in range(3):
        began_s = perf_s()
        arena = Arena.create(gibibytes * 256, _SLOT_BYTES)
        arena.wait_populated()
        seconds.append(perf_s() - began_s)
        arena.close()
    return [
        measured(
            f"arena of {gibibytes} GiB ready to serve",
            sorted(seconds)[1],
            "s",
            target=Target("<=", 4),
            note="every page populated; it serves from the first millisecond",
        )
    ]
