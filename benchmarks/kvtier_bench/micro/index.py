"""The engine's local index: lookup time and memory for each block, by the size of the index."""

import gc
import statistics
from pathlib import Path

from kvtier.blocks.key import BlockKey
from kvtier.eviction.lru import Lru
from kvtier.index.local import IDLE, RAM, LocalIndex
from kvtier_bench.micro.parts import chain, parents
from kvtier_bench.micro.timing import interleave
from kvtier_bench.rows import Row, Target, measured

PREFIX = 2000
HELD = (10**4, 10**5, 10**6, 10**7)
_BYTES_PER_BLOCK = 400
"""A generous estimate, used to skip sizes that the machine's memory cannot hold."""


def measure_index() -> list[Row]:
    """Return rows for each index size, without the sizes that the machine's memory cannot hold."""
    rows: list[Row] = []
    available = memory_available()
    for held in HELD:
        if held * _BYTES_PER_BLOCK > available // 2:
            continue
        rows += _measure_at(held)
    return rows


def _measure_at(held: int) -> list[Row]:
    gc.collect()
    before = resident_bytes()
    index, policy = LocalIndex(2), Lru(capacity_rows=held)
    for number in range(held // PREFIX):
        _insert(index, policy, chain(number, PREFIX))
    per_block = (resident_bytes() - before) / held
    probes = [chain(number * 7919 % (held // PREFIX), PREFIX) for number in range(40)]
    turn = 0

    def bisect() -> None:
        nonlocal turn
        turn = (turn + 1) % len(probes)
        assert index.longest_prefix(probes[turn]) == PREFIX

    def walk() -> None:
        nonlocal turn
        turn = (turn + 1) % len(probes)
        for key in probes[turn]:
            index.presence(key)

    seconds = interleave({"bisect": bisect, "walk": walk}, 39)
    size = f"10^{len(str(held)) - 1} blocks held"
    rows = [
        measured(
            f"lookup of a {PREFIX}-block prefix from ready keys, {size}",
            statistics.median(seconds["bisect"]) * 1e3,
            "ms",
            target=Target("<=", 0.2),
        ),
        measured(
            f"the same asked key by key, as vLLM does, {size}",
            statistics.median(seconds["walk"]) * 1e3,
            "ms",
        ),
    ]
    if held >= 10**6:
        rows.append(
            measured(
                f"index memory per block held, {size}",
                per_block,
                "bytes",
                target=Target("<=", 300),
                note="keys, rows and LRU order; growth of resident memory",
            )
        )
    return rows


def _insert(index: LocalIndex, policy: Lru, keys: list[BlockKey]) -> None:
    for key, parent in zip(keys, parents(keys), strict=True):
        row = index.add(key, parent, IDLE)
        index.hold(row, RAM)
        policy.insert(row, key)


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def memory_available() -> int:
    """Return the bytes that the kernel reports as available without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
