"""The engine gives one answer, token for token, wherever the prefix comes from.

A prompt is computed, then found on the device, in RAM, and on disk by a new process. SmolLM2
runs with its real weights in float32, where a prefix hit changes no token. The engine says how
many tokens it did not compute, kvtier's counters say which tier they came from, and loads that
copy nothing show that the comparison can fail.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Start
from tests.engine.engine import Answer, Engine, EngineFailed

BLOCK = 128
SHORT, LONG = 900, 2_300
DEVICE_BLOCKS = 20
STARTS = {0: SHORT, 12_000: LONG}
NAMES = [f"{size} tokens at {place}" for place, size in STARTS.items()]


def prompts(corpus: list[int]) -> dict[str, list[int]]:
    """Return prompts by name; no two begin alike, so that each has its own blocks."""
    places = STARTS.items()
    return {
        name: corpus[place : place + size]
        for name, (place, size) in zip(NAMES, places, strict=True)
    }


def reusable(ids: list[int]) -> int:
    """Return the tokens that whole blocks cover; the last token is always computed."""
    return (len(ids) - 1) // BLOCK * BLOCK


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slab") / "disk"


@pytest.fixture(scope="module")
def settings(disk: Path) -> dict[str, Any]:
    return {"ram": "1GiB", "disk": f"{disk}=1GiB", "transfer": {"drain": "30s"}}


@pytest.fixture(scope="module")
def first(
    start: Start, smollm2: Path, corpus: list[int], settings: dict[str, Any]
) -> Iterator[Engine]:
    """An engine that computes every prompt once."""
    # One block of the device stays empty; a prompt may take all others.
    longest = (DEVICE_BLOCKS - 1) * BLOCK
    with start(smollm2, settings, device_blocks=DEVICE_BLOCKS, max_model_len=longest) as engine:
        yield engine


@pytest.fixture(scope="module")
def cold(first: Engine, corpus: list[int]) -> dict[str, Answer]:
    """The answer to every prompt with nothing cached anywhere."""
    answers = {name: first.ask(ids) for name, ids in prompts(corpus).items()}
    assert [answer.cached for answer in answers.values()] == [0] * len(answers)
    return answers


def hits(engine: Engine) -> dict[str, int]:
    counted = engine.counters()
    return {tier: counted[tier]["hit_blocks"] for tier in ("ram", "disk")}


@pytest.mark.parametrize("name", NAMES)
def test_ram_hit_answers_as_device_hit_and_cold_run(
    first: Engine, cold: dict[str, Answer], corpus: list[int], name: str
) -> None:
    ids = prompts(corpus)[name]
    first.ask(ids)
    before = hits(first)
    device = first.ask(ids)
    assert hits(first) == before, "a device hit needs no tier"
    assert first.call("reset")
    ram = first.ask(ids)
    gained = {tier: now - before[tier] for tier, now in hits(first).items()}
    assert gained == {"ram": reusable(ids) // BLOCK, "disk": 0}
    assert device.cached == ram.cached == reusable(ids)
    assert cold[name].tokens == device.tokens == ram.tokens


def test_load_that_copies_nothing_changes_the_answer(
    first: Engine, cold: dict[str, Answer], corpus: list[int]
) -> None:
    # As long as the device: it overwrites every block that may still hold the right bytes.
    other = corpus[24_000 : 24_000 + (DEVICE_BLOCKS - 1) * BLOCK - 10]
    for name, ids in prompts(corpus).items():
        assert first.call("reset")
        first.ask(other, max_tokens=1)
        first.call("break_loads", groups=first.call("groups"))
        broken = first.ask(ids)
        first.call("break_loads", groups=[])
        assert broken.cached == reusable(ids), "it counts as a hit"
        assert broken.tokens != cold[name].tokens
        # The device now holds garbage under this prompt's keys.
        assert first.call("reset")


def test_salt_of_another_tenant_finds_nothing(
    first: Engine, cold: dict[str, Answer], corpus: list[int]
) -> None:
    name, ids = next(iter(prompts(corpus).items()))
    assert first.ask(ids).cached == reusable(ids)
    before = hits(first)
    salted = first.ask(ids, salt="another tenant")
    assert salted.cached == 0
    assert hits(first) == before
    assert salted.tokens == cold[name].tokens


def test_metrics_equal_the_cache_counters(first: Engine, cold: dict[str, Answer]) -> None:
    first.call("settle")
    counted, seen = first.counters(), first.call("metrics")
    ram = counted["ram"]
    assert seen["kvtier_hit_blocks_total,ram"] == ram["hit_blocks"] > 0
    assert seen["kvtier_hit_tokens_total,ram"] == ram["hit_blocks"] * BLOCK
    assert seen["kvtier_capacity_blocks,ram"] == ram["capacity"]
    assert seen["kvtier_capacity_tokens,ram"] == ram["capacity"] * BLOCK
    assert seen["kvtier_occupancy_blocks,disk"] <= counted["disk"]["resident"]
    assert seen["kvtier_capacity_blocks,disk"] == counted["disk"]["capacity"]


@pytest.fixture(scope="module")
def second(
    first: Engine, cold: dict[str, Answer], start: Start, smollm2: Path, settings: dict[str, Any]
) -> Iterator[Engine]:
    """A second process on the folder of the first, which has ended."""
    first.call("settle")
    first.call("check")
    first.close()
    with start(smollm2, settings) as engine:
        yield engine


@pytest.mark.parametrize("name", NAMES)
def test_disk_hit_in_new_process_answers_as_cold_run(
    second: Engine, cold: dict[str, Answer], corpus: list[int], name: str
) -> None:
    ids = prompts(corpus)[name]
    before = second.counters()
    found = second.ask(ids)
    after = second.counters()
    blocks = reusable(ids) // BLOCK
    assert found.cached == reusable(ids)
    assert found.tokens == cold[name].tokens
    for count in ("hit_blocks", "read_blocks"):
        assert after["disk"][count] - before["disk"][count] == blocks
    assert after["ram"]["hit_blocks"] == before["ram"]["hit_blocks"]
    assert after["disk"]["corrupt_blocks"] == after["disk"]["fault_blocks"] == 0


def test_block_promoted_from_disk_is_then_served_from_ram(
    second: Engine, cold: dict[str, Answer], corpus: list[int]
) -> None:
    name, ids = list(prompts(corpus).items())[-1]
    second.ask(ids)
    before = hits(second)
    assert second.call("reset")
    assert second.ask(ids).tokens == cold[name].tokens
    gained = {tier: now - before[tier] for tier, now in hits(second).items()}
    assert gained == {"ram": reusable(ids) // BLOCK, "disk": 0}
    second.call("check")


@pytest.fixture(scope="module")
def changed(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with one bit of one weight changed."""
    folder = tmp_path_factory.mktemp("models") / smollm2.name
    shutil.copytree(smollm2, folder)
    with (folder / "model.safetensors").open("r+b") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
        place = 8 + header_bytes + header["model.norm.weight"]["data_offsets"][0]
        file.seek(place)
        weight = file.read(1)
        file.seek(place)
        file.write(bytes([weight[0] ^ 1]))
    return folder


def test_disk_of_another_model_is_refused_with_the_reason(
    second: Engine, start: Start, changed: Path, settings: dict[str, Any]
) -> None:
    second.close()
    with pytest.raises(EngineFailed, match=r"^InvalidSettings: disk\.path: .*weights") as failed:
        start(changed, settings).start()
    assert "disk.on_mismatch: replace" in str(failed.value)


@pytest.mark.slow
def test_disk_of_another_model_is_replaced_where_settings_allow(
    second: Engine,
    start: Start,
    changed: Path,
    disk: Path,
    corpus: list[int],
) -> None:
    second.close()
    replacing = {
        "ram": "1GiB",
        "disk": {"path": str(disk), "capacity": "1GiB", "on_mismatch": "replace"},
    }
    with start(changed, replacing) as engine:
        assert engine.ask(next(iter(prompts(corpus).values())), max_tokens=1).cached == 0
        assert hits(engine) == {"ram": 0, "disk": 0}
