from collections.abc import Sequence

import pytest

from kvtier.index.fleet import estimated as module
from kvtier.index.fleet.base import DEVICE, FleetIndex
from kvtier.index.fleet.estimated import EstimatedIndex, compared
from kvtier.index.fleet.prompt import TextPrompt, TokenPrompt
from kvtier.testing.fleet import MODEL, FleetContract, prompt_of, tokens_of


class TestEstimated(FleetContract):
    def make_index(self) -> FleetIndex:
        return EstimatedIndex({DEVICE: 16_000, "ram": 32_000})

    def hold(self, index: FleetIndex, replica: str, token_ids: Sequence[int]) -> None:
        index.routed(TokenPrompt(token_ids, MODEL), replica)


def tokens_by_tier(index: EstimatedIndex, path: Sequence[int]) -> dict[str, int]:
    return dict(index.match(prompt_of(path), ["a"])[0].tokens)


def test_blocks_evicted_from_device_stay_in_larger_tier() -> None:
    index = EstimatedIndex({DEVICE: 3 * 16, "ram": 5 * 16})
    index.routed(prompt_of([1, 1, 1]), "a")
    index.routed(prompt_of([2, 2]), "a")
    assert tokens_by_tier(index, [1, 1, 1]) == {DEVICE: 16, "ram": 48}
    index.routed(prompt_of([0]), "a")
    assert tokens_by_tier(index, [1, 1, 1]) == {DEVICE: 0, "ram": 32}
    assert tokens_by_tier(index, [2, 2]) == {DEVICE: 32, "ram": 32}


def test_capacities_are_tokens_for_any_block_size() -> None:
    for block_tokens in (16, 64, 128):
        index = EstimatedIndex({DEVICE: 1024})
        index.set_block_tokens("a", block_tokens)
        index.routed(TokenPrompt(range(4096), MODEL), "a")
        assert index.match(TokenPrompt(range(4096), MODEL), ["a"])[0].tokens == {DEVICE: 1024}
        assert index.held_blocks("a") == 1024 // block_tokens


@pytest.mark.parametrize(
    ("engine", "estimate"), [(16, 64), (1, 64), (48, 96), (64, 64), (128, 128), (0, 0), (-5, 0)]
)
def test_compared_size_is_multiple_of_engine_block(engine: int, estimate: int) -> None:
    assert compared(engine) == estimate


def test_match_distinguishes_prompts_of_any_length() -> None:
    index = EstimatedIndex()
    shared = list(range(60_000))
    index.routed(TokenPrompt([*shared, *[7] * 3200], MODEL), "a")
    (found,) = index.match(TokenPrompt([*shared, *[8] * 3200], MODEL), ["a"])
    assert found.best_tokens == 60_000


def test_resize_applies_before_and_after_routing() -> None:
    index = EstimatedIndex({DEVICE: 1600})
    index.resize("a", DEVICE, 32)
    index.routed(prompt_of([1, 1, 1, 1]), "a")
    assert tokens_by_tier(index, [1, 1, 1, 1]) == {DEVICE: 32}
    index.resize("a", DEVICE, 16)
    assert tokens_by_tier(index, [1, 1, 1, 1]) == {DEVICE: 16}
    index.resize("a", "disk", 64)
    index.routed(prompt_of([1, 1, 1, 1]), "a")
    assert tokens_by_tier(index, [1, 1, 1, 1]) == {DEVICE: 16, "disk": 64}


def test_follows_limits_the_tiers_to_resize() -> None:
    fixed = EstimatedIndex({"ram": 32}, follows=())
    fixed.resize("a", "ram", 1600)
    fixed.resize("a", DEVICE, 1600)
    fixed.routed(prompt_of([1, 1, 1]), "a")
    assert tokens_by_tier(fixed, [1, 1, 1]) == {DEVICE: 0, "ram": 32}


def test_new_block_size_removes_blocks() -> None:
    index = EstimatedIndex({DEVICE: 1600})
    index.routed(prompt_of([1, 1, 1]), "a")
    index.set_block_tokens("a", 16)
    assert tokens_by_tier(index, [1, 1, 1]) == {DEVICE: 48}
    index.set_block_tokens("a", 32)
    assert tokens_by_tier(index, [1, 1, 1]) == {} | {DEVICE: 0}
    index.routed(prompt_of([1, 1, 1]), "a")
    index.routed(prompt_of([1, 1, 1]), "b")
    found = index.match(prompt_of([1, 1, 1]), ["a", "b"])
    assert [match.best_tokens for match in found] == [32, 48]


def test_text_prompts_are_matched() -> None:
    index = EstimatedIndex({DEVICE: 1600})
    text = "Der Weg ist das Ziel, und größer als gedacht. ".encode() * 20
    index.routed(TextPrompt(text, MODEL), "a")
    (found,) = index.match(TextPrompt(text + b" Mehr davon.", MODEL), ["a"])
    assert found.best_tokens == len(text) // 64 * 16
    assert tokens_by_tier(index, tokens_of([1])[:3]) == {DEVICE: 0}


def test_unused_block_sizes_leave_no_tables() -> None:
    index = EstimatedIndex()
    for size in range(1, 200):
        index.set_block_tokens("liar", size)
        index.routed(TokenPrompt(list(range(400)), "m"), "liar")
    assert len(index._sizes) == 1
    index.set_block_tokens("other", 16)
    assert len(index._sizes) == 2


def test_blocks_of_tier_are_bounded_for_any_capacity(monkeypatch) -> None:
    monkeypatch.setattr(module, "BLOCKS_MAX", 10)
    index = EstimatedIndex()
    index.resize("a", "disk", 1 << 50)
    for start in range(20):
        index.routed(TokenPrompt(list(range(start * 1000, start * 1000 + 64)), "m"), "a")
    assert index.held_blocks("a") <= 10
