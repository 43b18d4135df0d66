"""Two engines share one folder: each loads what the other computed, and key spaces never mix.

The engine says how many tokens it did not compute, kvtier's counters say where they came from.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Start
from tests.engine.engine import Answer, Engine

BLOCK = 128
SIZE = 900
WHOLE = (SIZE - 1) // BLOCK * BLOCK


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mount") / "kv"


@pytest.fixture(scope="module")
def settings(folder: Path) -> dict[str, Any]:
    return {"ram": "512MiB", "shared": {"path": str(folder), "recheck": "50ms"}}


@pytest.fixture(scope="module")
def prompts(corpus: list[int]) -> list[list[int]]:
    return [corpus[place : place + SIZE] for place in (1_000, 6_000, 11_000)]


@pytest.fixture(scope="module")
def first(start: Start, smollm2: Path, settings: dict[str, Any]) -> Iterator[Engine]:
    with start(smollm2, settings) as engine:
        yield engine


@pytest.fixture(scope="module")
def second(start: Start, smollm2: Path, settings: dict[str, Any]) -> Iterator[Engine]:
    with start(smollm2, settings) as engine:
        yield engine


@pytest.fixture(scope="module")
def computed(first: Engine, prompts: list[list[int]]) -> list[Answer]:
    """The first engine's answers to the first two prompts, whose blocks are in the folder."""
    answers = [first.ask(ids) for ids in prompts[:2]]
    first.call("settle")
    assert [answer.cached for answer in answers] == [0, 0]
    return answers


def test_second_engine_hits_at_its_first_request(
    computed: list[Answer], second: Engine, prompts: list[list[int]]
) -> None:
    answer = second.ask(prompts[0])
    assert (answer.tokens, answer.cached) == (computed[0].tokens, WHOLE)
    counted = second.counters()
    assert counted["shared"]["hit_blocks"] == WHOLE // BLOCK
    assert counted["shared"]["corrupt_blocks"] == 0
    second.call("settle")
    second.call("check")


def test_prompt_that_diverges_is_loaded_up_to_the_divergence(
    computed: list[Answer], second: Engine, prompts: list[list[int]]
) -> None:
    parted = prompts[1][: 5 * BLOCK] + prompts[2][:600]
    answer = second.ask(parted)
    assert answer.cached == 5 * BLOCK
    assert answer.tokens == second.ask(parted, salt="reference").tokens


def test_blocks_of_second_engine_are_found_by_first_after_recheck(
    computed: list[Answer], first: Engine, second: Engine, prompts: list[list[int]]
) -> None:
    assert first.ask(prompts[2][: 3 * BLOCK]).cached == 0, "the prefix must be absent at first"
    written = second.ask(prompts[2])
    second.call("settle")
    again = first.ask(prompts[2])
    assert again.tokens == written.tokens
    assert again.cached == WHOLE


@pytest.mark.slow
def test_engine_of_another_precision_finds_nothing(
    computed: list[Answer],
    second: Engine,
    start: Start,
    smollm2: Path,
    settings: dict[str, Any],
    folder: Path,
    prompts: list[list[int]],
) -> None:
    second.close()
    with start(smollm2, settings, dtype="bfloat16") as other:
        # A CPU without AVX-512 takes a minute for a long prompt in bfloat16.
        assert other.ask(prompts[0][:400]).cached == 0
        other.call("settle")
        assert other.counters()["shared"]["written_blocks"] > 0
    assert len(list(folder.glob("*/manifest.json"))) == 2


def test_mount_that_hangs_costs_a_deadline_and_no_answer(
    computed: list[Answer],
    second: Engine,
    start: Start,
    smollm2: Path,
    settings: dict[str, Any],
    prompts: list[list[int]],
) -> None:
    second.close()
    settings = {**settings, "transfer": {"promote_deadline": "1s"}}
    with start(smollm2, settings, faulty=True) as engine:
        engine.call("inject", fault="HUNG", count=8)
        answer = engine.ask(prompts[0])
        assert (answer.tokens, answer.cached) == (computed[0].tokens, 0)
        # The breaker is open by now: the next request does not wait at all.
        answer = engine.ask(prompts[1])
        assert (answer.tokens, answer.cached) == (computed[1].tokens, 0)
        engine.call("release")


@pytest.mark.slow
def test_engine_killed_while_it_writes_leaves_no_wrong_block(
    computed: list[Answer],
    second: Engine,
    start: Start,
    smollm2: Path,
    settings: dict[str, Any],
    folder: Path,
    corpus: list[int],
) -> None:
    second.close()
    ids = corpus[20_000:22_500]
    engine = start(smollm2, settings, max_num_batched_tokens=512).start()
    try:
        engine.add("unfinished", ids)
        while not engine.counters()["shared"]["written_blocks"]:
            engine.step()
    finally:
        engine.kill()
    with start(smollm2, settings) as again:
        answer = again.ask(ids)
        assert answer.cached >= BLOCK
        assert answer.tokens == again.ask(ids, salt="reference").tokens
        assert again.counters()["shared"]["corrupt_blocks"] == 0
    assert not list(folder.glob("*/quarantine/*"))
