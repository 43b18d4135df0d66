from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvtier.tiers.base import BlockMove, Outcome
from kvtier_bench.kill.roles import (
    CHAIN_BLOCKS,
    LAYOUT,
    ROLES,
    RoleContext,
    SharedCounters,
    chain_keys,
    count,
    log_path,
    open_tier,
    payload,
)


def turns(number: int) -> Callable[[], bool]:
    left = iter([True] * number)
    return lambda: next(left, False)


def play(role: str, folder: Path, counters: SharedCounters, number: int) -> None:
    ROLES[role](RoleContext(folder, counters, 0, 5, turns(number)))


def test_reader_finds_what_a_writer_logged(tmp_path: Path) -> None:
    counters = SharedCounters()
    play("writer", tmp_path, counters, 30)
    lines = log_path(tmp_path, 0).read_text().splitlines()
    assert len(lines) == 30
    assert counters["done"] > 0
    assert counters["failed"] == 0
    tier = open_tier(tmp_path)
    for line in lines:
        chain, blocks = map(int, line.split())
        assert tier.find(chain_keys(chain)[:blocks]) == [Outcome.DONE] * blocks
    tier.close()
    play("reader", tmp_path, counters, 1)
    assert counters["reads"] == 200
    assert counters["read_blocks"] > 0
    assert (counters["wrong"], counters["corrupt"]) == (0, 0)


def test_evictor_below_its_bound_removes_nothing(tmp_path: Path) -> None:
    counters = SharedCounters()
    play("writer", tmp_path, counters, 10)
    files = sorted((tmp_path / "kv").glob("*/blocks/*/*.kvt"))
    play("evictor", tmp_path, counters, 1)
    assert counters["passes"] == 1
    assert sorted((tmp_path / "kv").glob("*/blocks/*/*.kvt")) == files


def test_wrong_and_corrupt_blocks_are_counted() -> None:
    counters, key = SharedCounters(), chain_keys(3)[0]
    right = np.zeros(LAYOUT.slot_bytes, np.uint8)
    right[: LAYOUT.block_bytes] = payload(key)
    wrong = right.copy()
    wrong[LAYOUT.block_bytes - 1] ^= np.uint8(1)
    outcomes = [Outcome.DONE, Outcome.DONE, Outcome.CORRUPT, Outcome.MISSING]
    count(counters, [BlockMove(key, right), *[BlockMove(key, wrong)] * 3], outcomes)
    assert (counters["read_blocks"], counters["wrong"], counters["corrupt"]) == (2, 1, 1)


def test_chains_are_all_different() -> None:
    keys = {key for chain in range(20) for key in chain_keys(chain)}
    assert len(keys) == 20 * CHAIN_BLOCKS
    assert len({payload(key).tobytes() for key in keys}) == len(keys)
