"""Preemption, aborts, resets and a disk that hangs change no answer.

One engine goes through all of it. Its device cache is too small for the requests, its RAM holds
less than they need, and its disk tier can be told to be slow or to hang.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.conftest import Start
from tests.engine.engine import Engine

BLOCK = 128
SIZES = (500, 630, 760, 1_010)
"""Tokens of the prompts: just short of whole blocks, so that each soon needs one more."""
TOKENS = 24
DEADLINE_S = 2.0


@pytest.fixture(scope="module")
def prompts(corpus: list[int]) -> list[list[int]]:
    return [corpus[6_000 * n : 6_000 * n + size] for n, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def reference(start: Start, smollm2: Path, prompts: list[list[int]]) -> list[list[int]]:
    """The answers of vLLM alone, with a device cache that holds everything."""
    with start(smollm2, None, device_blocks=100) as engine:
        answers = engine.generate(prompts, max_tokens=TOKENS)
        assert engine.call("metrics")["vllm:num_preemptions_total"] == 0
    return [answer.tokens for answer in answers]


@pytest.fixture(scope="module")
def engine(
    start: Start, smollm2: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    # The prompts fit the device together; with their answers they do not.
    blocks = 1 + sum(-(-size // BLOCK) for size in SIZES)
    settings = {
        "ram": "128MiB",
        "disk": f"{tmp_path_factory.mktemp('slab') / 'disk'}=1GiB",
        "transfer": {"promote_deadline": f"{DEADLINE_S:.0f}s"},
    }
    running = start(smollm2, settings, device_blocks=blocks, max_model_len=2_048, faulty=True)
    with running:
        yield running


def push_out(engine: Engine, corpus: list[int]) -> None:
    """Fill RAM and the device with other prompts, and reset the device."""
    for place in (24_000, 27_000, 30_000, 33_000):
        engine.ask(corpus[place : place + 1_010], max_tokens=1)
    engine.call("settle")
    assert engine.call("reset")


def test_preempted_requests_keep_their_answers(
    engine: Engine, prompts: list[list[int]], reference: list[list[int]]
) -> None:
    for _ in range(2):
        answers = engine.generate(prompts, max_tokens=TOKENS)
        assert [answer.tokens for answer in answers] == reference
    assert engine.call("metrics")["vllm:num_preemptions_total"] > 0
    assert engine.counters()["ram"]["hit_blocks"] > 0
    engine.call("settle")
    engine.call("check")


def test_reset_while_requests_run_keeps_their_answers(
    engine: Engine, prompts: list[list[int]], reference: list[list[int]]
) -> None:
    for number, ids in enumerate(prompts):
        engine.add(str(number), ids, TOKENS)
    finished = engine.step(6)
    assert not finished
    # The connector is always reset too: vLLM 0.32 fails an assertion of its own where a request
    # that a reset preempted finds its blocks in a tier within the same step.
    assert engine.call("reset", running=True, connector=True)
    finished = engine.drain()
    assert [finished[str(n)].tokens for n in range(len(prompts))] == reference
    engine.call("settle")
    engine.call("check")


def test_reset_of_connector_empties_every_tier(
    engine: Engine, prompts: list[list[int]], reference: list[list[int]]
) -> None:
    engine.ask(prompts[0])
    engine.call("settle")
    assert engine.call("reset", connector=True)
    engine.call("settle")
    counted = engine.counters()
    assert counted["ram"]["resident"] == counted["disk"]["resident"] == 0
    answer = engine.ask(prompts[0], max_tokens=TOKENS)
    assert (answer.cached, answer.tokens) == (0, reference[0])
    engine.call("check")


def test_abort_during_promotion_leaves_nothing_held(
    engine: Engine, corpus: list[int], prompts: list[list[int]], reference: list[list[int]]
) -> None:
    engine.ask(prompts[2], max_tokens=1)
    push_out(engine, corpus)
    before = engine.counters()
    engine.call("inject", fault="SLOW", count=4)
    engine.add("gone", prompts[2], TOKENS)
    assert not engine.step(3)
    engine.call("abort", requests=["gone"])
    assert engine.call("unfinished") == 0
    engine.call("settle")
    engine.call("check")
    assert engine.counters()["disk"]["hit_blocks"] == before["disk"]["hit_blocks"]
    assert engine.ask(prompts[2], max_tokens=TOKENS).tokens == reference[2]
    assert engine.counters()["disk"]["hit_blocks"] > before["disk"]["hit_blocks"]
    engine.call("check")


def test_disk_that_hangs_costs_one_deadline(
    engine: Engine, corpus: list[int], prompts: list[list[int]], reference: list[list[int]]
) -> None:
    push_out(engine, corpus)
    before = engine.counters()
    engine.call("inject", fault="HUNG", count=4)
    started_s = time.monotonic()
    answer = engine.ask(prompts[2], max_tokens=TOKENS)
    assert time.monotonic() - started_s >= DEADLINE_S, "the request waited for the disk"
    assert answer.tokens == reference[2]
    after = engine.counters()
    assert after["expired_promotions"] == before["expired_promotions"] + 1
    assert after["disk"]["hit_blocks"] == before["disk"]["hit_blocks"]
    # The disk still hangs, and the next request is served.
    assert engine.ask(prompts[3], max_tokens=TOKENS).tokens == reference[3]
    engine.call("release")
    engine.call("settle")
    engine.call("check")
    assert engine.ask(prompts[1], max_tokens=TOKENS).tokens == reference[1]
