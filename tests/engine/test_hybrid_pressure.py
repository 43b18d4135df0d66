"""Hybrid models answer alike while every cache overflows.

A prefix is usable only where all groups of a position are there. Here they are evicted and
loaded again all the time, by three requests at once, from RAM and from disk.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.engine.conftest import MADE_UP, Start
from tests.engine.engine import Answer

pytestmark = pytest.mark.slow

ROUNDS = 50
LOGPROBS = 20


class Pressed(NamedTuple):
    dtype: str
    state_dtype: str
    """Type of a state group. By default a CPU without AVX512-BF16 halves it, and the blocks."""
    device_blocks: int
    ram: str
    disk: str
    tolerance: float
    """Of the first token's logprobs: in bfloat16 they depend on how a prefill is cut."""


MODELS = {
    "qwen3_next": Pressed("bfloat16", "float32", 30, "6MiB", "8MiB", 0.15),
    "gemma3": Pressed("float32", "auto", 60, "12MiB", "24MiB", 1e-3),
}


def distance(one: Answer, other: Answer) -> float:
    """Return the largest difference of the first token's logprobs.

    It is infinite where the two rankings hardly overlap.
    """
    assert one.logprobs is not None
    assert other.logprobs is not None
    ours, theirs = one.logprobs[0], other.logprobs[0]
    both = ours.keys() & theirs.keys()
    if len(both) < LOGPROBS // 2:
        return float("inf")
    differences = [abs(ours[token] - theirs[token]) for token in both]
    return max(d if d == d else float("inf") for d in differences)


def prompts(noise: list[int]) -> list[list[int]]:
    """Return prompts of five prefixes, each with three endings."""
    rows = []
    for family in range(5):
        prefix = noise[700 * family :][: 700 + 150 * family]
        rows += [prefix + noise[5_000 + 300 * n + family :][: 100 + 200 * n] for n in range(3)]
    return rows


@pytest.mark.parametrize("name", MODELS)
def test_hybrid_answers_stay_while_every_cache_overflows(
    start: Start, made_up: Callable[[str], Path], noise: list[int], tmp_path: Path, name: str
) -> None:
    pressed = MODELS[name]
    settings = {"ram": pressed.ram, "disk": f"{tmp_path / 'disk'}={pressed.disk}"}
    drawn = random.Random(0)
    asked = prompts(noise)
    with start(
        made_up(name),
        settings,
        device_blocks=pressed.device_blocks,
        dtype=pressed.dtype,
        mamba_ssm_cache_dtype=pressed.state_dtype,
        **{**MADE_UP, "max_model_len": 2_048},
    ) as engine:
        # A salt of its own makes the engine compute each from nothing.
        computed = [
            engine.ask(ids, max_tokens=1, salt=f"reference {n}", logprobs=LOGPROBS)
            for n, ids in enumerate(asked)
        ]
        for turn in range(ROUNDS):
            chosen = drawn.choices(range(len(asked)), k=3)
            answers = engine.generate([asked[n] for n in chosen], max_tokens=2, logprobs=LOGPROBS)
            for n, answer in zip(chosen, answers, strict=True):
                assert distance(answer, computed[n]) < pressed.tolerance, f"{n} in turn {turn}"
            if turn % 5 == 4:
                engine.call("settle")
                engine.call("check")
                engine.call("reset")
        counted = engine.counters()
        for tier in ("ram", "disk"):
            assert counted[tier]["hit_blocks"] > 0
            assert counted[tier]["evicted_blocks"] > 0
        # With loads that copy nothing the comparison fails.
        engine.ask(asked[0], max_tokens=1)
        engine.call("settle")
        assert engine.call("reset")
        engine.generate([noise[3_000:4_000], noise[6_000:7_000]], max_tokens=1, salt="filler")
        engine.call("break_loads", groups=engine.call("groups"))
        broken = engine.ask(asked[0], max_tokens=1, logprobs=LOGPROBS)
        assert broken.cached > 0
        assert distance(broken, computed[0]) > pressed.tolerance
