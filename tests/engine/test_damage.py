"""An engine that is killed while it writes, and bytes that change on disk: no wrong answer."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kvtier_bench.processes import session_processes
from tests.engine.conftest import Start
from tests.engine.engine import Engine

BLOCK = 128
SIZE = 1_100
BLOCKS = (SIZE - 1) // BLOCK
DAMAGE_EVERY_BYTES = 16 << 20
# A prompt takes several steps, so that a kill can come between them.
HOW: dict[str, Any] = {"max_num_batched_tokens": 256}


class Left(NamedTuple):
    """What a killed engine had answered and left behind."""

    settings: dict[str, Any]
    folder: Path
    answers: list[list[int]]
    session: int
    shared_memory: set[str]


@pytest.fixture(scope="module")
def prompts(corpus: list[int]) -> list[list[int]]:
    return [corpus[place : place + SIZE] for place in (2_000, 7_000, 14_000)]


@pytest.fixture(scope="module")
def left(
    start: Start,
    smollm2: Path,
    prompts: list[list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Left:
    """An engine that was killed while it wrote the blocks of the last prompt."""
    folder = tmp_path_factory.mktemp("slab") / "disk"
    settings = {"ram": "512MiB", "disk": f"{folder}=512MiB"}
    before = set(os.listdir("/dev/shm"))
    engine = start(smollm2, settings, **HOW).start()
    try:
        answers = [engine.ask(ids).tokens for ids in prompts[:2]]
        engine.call("settle")
        engine.add("unfinished", prompts[2])
        engine.step(3)
        assert engine.counters()["ram"]["resident"] > 2 * BLOCKS
    finally:
        engine.kill()
    shared_memory = set(os.listdir("/dev/shm")) - before
    return Left(settings, folder, answers, engine.process.pid, shared_memory)


@pytest.fixture(scope="module")
def restarted(left: Left, start: Start, smollm2: Path) -> Iterator[Engine]:
    with start(smollm2, left.settings, **HOW) as engine:
        yield engine


def test_killed_engine_leaves_no_process_and_no_shared_memory(left: Left) -> None:
    assert session_processes(left.session) == []
    assert not {name for name in left.shared_memory if not name.startswith(("sem.", "torch_"))}


def test_killed_engine_leaves_whole_blocks_that_are_found(
    left: Left, restarted: Engine, prompts: list[list[int]]
) -> None:
    for ids, expected in zip(prompts, left.answers, strict=False):
        answer = restarted.ask(ids)
        assert (answer.tokens, answer.cached) == (expected, BLOCKS * BLOCK)
    counted = restarted.counters()["disk"]
    assert counted["hit_blocks"] == 2 * BLOCKS
    assert counted["corrupt_blocks"] == 0


def test_killed_engine_request_is_answered_right_after_restart(
    restarted: Engine, prompts: list[list[int]]
) -> None:
    answer = restarted.ask(prompts[2])
    # Another salt is another key: computed from nothing.
    computed = restarted.ask(prompts[2], salt="reference")
    assert computed.cached == 0
    assert answer.tokens == computed.tokens
    restarted.call("settle")
    restarted.call("check")
    assert restarted.counters()["disk"]["corrupt_blocks"] == 0


def test_damaged_blocks_on_disk_are_counted_and_computed_again(
    left: Left, restarted: Engine, start: Start, smollm2: Path, prompts: list[list[int]]
) -> None:
    restarted.close()
    flip_bytes(left.folder)
    with start(smollm2, left.settings, **HOW) as engine:
        for ids, expected in zip(prompts, left.answers, strict=False):
            assert engine.ask(ids).tokens == expected
        damaged = engine.counters()["disk"]
        assert damaged["corrupt_blocks"] > 0
        assert damaged["hit_blocks"] < 2 * BLOCKS
        engine.call("settle")
        engine.call("check")
        # Damaged blocks are written again: by the first request, or by the second where the
        # first computed a block while its damaged copy was still being read.
        for _ in range(2):
            assert engine.call("reset")
            found = engine.ask(prompts[0])
            assert found.tokens == left.answers[0]
        assert found.cached == BLOCKS * BLOCK


def flip_bytes(folder: Path) -> None:
    """Flip one bit every `DAMAGE_EVERY_BYTES`, beginning in the first block."""
    for segment in folder.glob("segment-*"):
        with segment.open("r+b") as file:
            for place in range(100, segment.stat().st_size, DAMAGE_EVERY_BYTES):
                file.seek(place)
                byte = file.read(1)
                file.seek(place)
                file.write(bytes([byte[0] ^ 0x10]))
