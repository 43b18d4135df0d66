"""Models with several KV-cache groups: a tier hit answers as a device hit does.

qwen3_next keeps linear-attention state beside full attention, gemma3 keeps sliding windows. The
weights are random, so equal tokens would prove little: the tests compare log probabilities, and
show that each group by itself decides the answer.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.engine.conftest import MADE_UP, Start
from tests.engine.engine import Answer, Engine

SIZE = 2_500
LOGPROBS = 5
SAME = 1e-5
"""Bound of `gap` for equal bytes: the last bit of a float32 sum depends on where buffers lie."""
DIFFERENT = 1e-4
"""A group whose load copied nothing moves log probabilities by more than this."""


class Hybrid(NamedTuple):
    name: str
    dtype: str
    state_dtype: str
    """Type of a state group. By default a CPU without AVX512-BF16 halves it, and the blocks."""
    reusable: int
    """Tokens of a prompt of SIZE tokens that a hit covers."""
    blocks: int
    """Blocks of all groups that a hit of that many tokens loads."""


# A hit loads the last state of a state group, and the last window of a sliding group.
HYBRIDS = {
    # 9 blocks of 256 tokens of full attention; one state in each of three groups.
    "qwen3_next": Hybrid("qwen3_next", "bfloat16", "float32", 2_304, 9 + 3),
    # 19 blocks of 128 tokens of full attention; a window of 2 blocks in each of two groups.
    "gemma3": Hybrid("gemma3", "float32", "auto", 2_432, 19 + 2 * 2),
}


class Running(NamedTuple):
    hybrid: Hybrid
    model: Path
    engine: Engine
    settings: dict[str, Any]
    device: Answer
    """The answer when the prefix is on the device."""


def flags(hybrid: Hybrid) -> dict[str, Any]:
    """Return the arguments that the engine is started with."""
    state = {"mamba_ssm_cache_dtype": hybrid.state_dtype}
    return {"device_blocks": 200, "dtype": hybrid.dtype, **state, **MADE_UP}


def ask(engine: Engine, ids: list[int]) -> Answer:
    return engine.ask(ids, max_tokens=8, logprobs=LOGPROBS)


def hit_blocks(engine: Engine) -> dict[str, int]:
    counted = engine.counters()
    return {tier: counted[tier]["hit_blocks"] for tier in ("ram", "disk")}


def gap(one: Answer, other: Answer) -> float:
    """Return the largest difference of a logprob; infinite where the ranked tokens differ."""
    assert one.logprobs is not None
    assert other.logprobs is not None
    largest = 0.0
    for ours, theirs in zip(one.logprobs, other.logprobs, strict=True):
        if set(ours) != set(theirs):
            return float("inf")
        differences = [abs(ours[token] - theirs[token]) for token in ours]
        # Garbage in a state gives NaN, which compares to nothing.
        largest = max([largest, *(d if d == d else float("inf") for d in differences)])
    return largest


@pytest.fixture(scope="module", params=HYBRIDS)
def running(
    request: pytest.FixtureRequest,
    start: Start,
    made_up: Callable[[str], Path],
    noise: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    hybrid = HYBRIDS[request.param]
    settings = {
        "ram": "256MiB",
        "disk": f"{tmp_path_factory.mktemp('slab') / 'disk'}=256MiB",
        "transfer": {"drain": "30s"},
    }
    model = made_up(hybrid.name)
    with start(model, settings, **flags(hybrid)) as engine:
        ids = noise[:SIZE]
        assert ask(engine, ids).cached == 0
        device = ask(engine, ids)
        assert device.cached == hybrid.reusable
        assert hit_blocks(engine) == {"ram": 0, "disk": 0}
        yield Running(hybrid, model, engine, settings, device)


def test_hybrid_ram_hit_answers_as_device_hit(running: Running, noise: list[int]) -> None:
    before = hit_blocks(running.engine)["ram"]
    assert running.engine.call("reset")
    ram = ask(running.engine, noise[:SIZE])
    assert ram.cached == running.hybrid.reusable
    assert hit_blocks(running.engine)["ram"] - before == running.hybrid.blocks
    assert ram.tokens == running.device.tokens
    assert gap(ram, running.device) < SAME


def test_hybrid_load_without_one_group_changes_the_answer(
    running: Running, noise: list[int]
) -> None:
    groups = running.engine.call("groups")
    assert len(groups) > 1
    for broken in [groups, *([group] for group in groups)]:
        assert running.engine.call("reset")
        # Another prompt overwrites the device blocks that may still hold the right bytes.
        ask(running.engine, noise[3_000:7_000])
        running.engine.call("break_loads", groups=broken)
        answer = ask(running.engine, noise[:SIZE])
        running.engine.call("break_loads", groups=[])
        assert answer.cached == running.hybrid.reusable
        assert gap(answer, running.device) > DIFFERENT, f"groups {broken} were not loaded"
    assert running.engine.call("reset")


def test_hybrid_shorter_prefix_is_found(running: Running, noise: list[int]) -> None:
    ids = noise[: SIZE // 2] + noise[5_000:5_600]
    ask(running.engine, ids)
    device = ask(running.engine, ids)
    assert running.engine.call("reset")
    ram = ask(running.engine, ids)
    assert ram.cached == device.cached > SIZE // 2
    assert gap(ram, device) < SAME


def test_hybrid_disk_hit_in_new_process_answers_as_device_hit(
    running: Running, start: Start, noise: list[int]
) -> None:
    running.engine.call("settle")
    running.engine.call("check")
    running.engine.close()
    with start(running.model, running.settings, **flags(running.hybrid)) as second:
        disk = ask(second, noise[:SIZE])
        assert disk.cached == running.hybrid.reusable
        assert hit_blocks(second) == {"ram": 0, "disk": running.hybrid.blocks}
        assert gap(disk, running.device) < SAME
