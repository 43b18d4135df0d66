"""What of an event is used; the model of all of it is in test_precise."""

from typing import Any

import pytest

from kvtier.index.fleet import telling as module
from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.changes import Removed, Stored
from kvtier.index.fleet.hashing import NUMBERS_MAX, process_hasher
from kvtier.index.fleet.prompt import TokenPrompt
from kvtier.index.fleet.telling import Shelves, Teller

TOKENS = list(range(48))


def told(*events: Stored | Removed) -> tuple[Teller, Shelves]:
    shelves = Shelves(process_hasher(), 1000, 2.0)
    teller = Teller("m", shelves)
    for event in events:
        if isinstance(event, Stored):
            teller.store(event)
        else:
            teller.remove(event)
    return teller, shelves


def stored(**changes: Any) -> Stored:
    event: dict[str, Any] = {
        "names": [1, 2, 3],
        "parent": None,
        "token_ids": TOKENS,
        "block_tokens": 16,
        "tier": DEVICE,
    }
    return Stored(**{**event, **changes})


def blocks(teller: Teller, prompt: TokenPrompt, level: int = 0) -> int:
    if teller.shelf is None or teller.held is None:
        return 0
    return teller.shelf.table.ends(prompt.chain(16)).reach(teller.held.slot, 1 << level)


PROMPT = TokenPrompt(TOKENS, "m")


def test_blocks_are_hashed_as_prompts_are() -> None:
    whole, _ = told(stored())
    assert blocks(whole, PROMPT) == 3
    parts, _ = told(
        stored(names=[1], token_ids=TOKENS[:16]),
        stored(names=[2, 3], token_ids=TOKENS[16:], parent=1),
    )
    assert blocks(parts, PROMPT) == 3


def test_adapters_and_salts_are_scopes_and_images_are_content() -> None:
    adapter, _ = told(stored(adapter="lora", extra_keys=[("lora",), ("lora",), ("lora",)]))
    assert blocks(adapter, PROMPT) == 0
    assert blocks(adapter, TokenPrompt(TOKENS, "lora")) == 3
    salted, _ = told(stored(adapter="lora", extra_keys=[("lora", "pepper"), None, None]))
    assert blocks(salted, TokenPrompt(TOKENS, "lora")) == 0
    assert blocks(salted, TokenPrompt(TOKENS, "lora", salt="pepper")) == 3
    alike, _ = told(stored(adapter="lora", extra_keys=[("lora", "lora"), ("lora",), ("lora",)]))
    assert blocks(alike, TokenPrompt(TOKENS, "lora", salt="lora")) == 3
    image, _ = told(stored(extra_keys=[None, [["image", 3]], None]))
    assert blocks(image, PROMPT) == 1


def test_an_event_without_tokens_names_what_is_known() -> None:
    teller, shelves = told(stored(), stored(names=[2, 9], token_ids=[], block_tokens=0, tier="ram"))
    assert teller.held is not None
    assert [teller.held.table.own_byte(hashed, 1) for hashed in PROMPT.chain(16)] == [127] * 3
    teller.remove(Removed(names=[3, 2], tier=DEVICE))
    assert [blocks(teller, PROMPT, level) for level in (0, 1)] == [1, 2]
    assert shelves.dropped == {"unknown": 1}


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (stored(names=[4], token_ids=TOKENS[:15]), "malformed"),
        (stored(names=[4], block_tokens=0), "malformed"),
        (stored(names=[4, 5], parent=3, token_ids=TOKENS[:2], block_tokens=1), "block_size"),
        (stored(names=[4], parent=77, token_ids=TOKENS[:16]), "orphan"),
        (stored(names=[4], token_ids=TOKENS[:16], group=1), "group"),
        (stored(names=[4], token_ids=TOKENS[:16], kind="sliding_window"), "group"),
        (stored(names=[4], token_ids=[], block_tokens=0), "unknown"),
        (Removed(names=[4], tier=DEVICE, group=0), "unknown"),
        (Removed(names=[1], tier=DEVICE, group=1), "group"),
    ],
)
def test_what_cannot_be_used_is_counted_and_changes_nothing(event, reason) -> None:
    teller, shelves = told(stored(), event)
    assert set(shelves.dropped) - {reason} == set()
    assert shelves.dropped[reason] == len(event.names)
    assert blocks(teller, PROMPT) == 3
    assert teller.held is not None
    assert len(teller.held) == 3


def test_events_before_the_first_that_says_a_block_size_cannot_be_used() -> None:
    _, shelves = told(
        stored(token_ids=[], block_tokens=0),
        Removed(names=[1], tier=DEVICE),
        stored(block_tokens=NUMBERS_MAX + 1, names=[1], token_ids=range(NUMBERS_MAX + 1)),
    )
    assert shelves.dropped == {"unknown": 4, "block_size": 1}


def test_a_prefix_beyond_what_is_hashed_is_not_known() -> None:
    half = NUMBERS_MAX // 2
    teller, shelves = told(
        stored(names=[1], token_ids=range(half), block_tokens=half),
        stored(names=[2, 3], parent=1, token_ids=range(2 * half), block_tokens=half),
    )
    assert teller.held is not None
    assert len(teller.held) == 2
    assert shelves.dropped == {"too_long": 1}


def test_the_group_of_full_attention_counts_once_it_is_told() -> None:
    teller, _ = told(
        stored(group=0),
        stored(group=1, kind="full_attention", token_ids=TOKENS[:32], names=[7, 8]),
        stored(group=0),
    )
    assert blocks(teller, PROMPT) == 2
    teller.remove(Removed(names=[7], tier=DEVICE, group=0))
    assert blocks(teller, PROMPT) == 2


def test_a_tier_too_many_is_counted() -> None:
    _, shelves = told(*(stored(tier=tier) for tier in ("x", "y", "z")))
    assert shelves.dropped == {"tier": 3}


def test_a_replica_cannot_make_up_block_sizes_without_end(monkeypatch) -> None:
    monkeypatch.setattr(module, "_SHELVES_MAX", 3)
    shelves = Shelves(process_hasher(), 1000, 2.0)
    teller = Teller("m", shelves)
    for size in range(1, 20):
        teller.store(stored(names=[1], token_ids=range(size), block_tokens=size))
        teller.clear()
        assert shelves.pools == []
    for size in range(1, 6):
        Teller("m", shelves).store(stored(names=[1], token_ids=range(size), block_tokens=size))
    assert len(shelves.pools) == 3
    assert shelves.dropped == {"block_size": 2}


def test_the_largest_blocks_are_the_engines_own() -> None:
    part = stored(names=[9], token_ids=TOKENS[:8], block_tokens=8)
    for tail in (part, stored(names=[9], parent=1, token_ids=TOKENS[:8], block_tokens=8)):
        teller, shelves = told(tail, stored())
        assert blocks(teller, PROMPT) == 3
        teller.store(part)
        assert shelves.dropped["block_size"] == 1
        assert blocks(teller, PROMPT) == 3


def test_clearing_a_device_beside_nothing_else_leaves_at_once() -> None:
    teller, shelves = told(stored())
    teller.clear_device()
    assert teller.held is None
    assert teller.is_whole
    teller.store(stored())
    assert blocks(teller, PROMPT) == 3
    teller.store(stored(tier="ram"))
    for _ in range(2):
        teller.clear_device()
        assert (blocks(teller, PROMPT), blocks(teller, PROMPT, 1)) == (0, 3)
    teller.store(stored())
    teller.clear_device()
    assert (blocks(teller, PROMPT), blocks(teller, PROMPT, 1)) == (0, 3)
    assert not shelves.dropped


def test_who_reads_shared_storage_goes_on_with_it_when_its_device_is_cleared() -> None:
    teller, _ = told(stored(), stored(tier="shared", is_shared=True))
    teller.clear_device()
    assert blocks(teller, PROMPT) == 0
    assert blocks(teller, PROMPT, 3) == 3


def test_only_who_tells_from_the_beginning_tells_everything() -> None:
    teller, _ = told(stored())
    assert not teller.is_whole
    teller.begin()
    assert teller.is_whole
    teller.clear()
    assert not teller.is_whole


def test_models_of_which_nobody_is_left_make_room_for_others(monkeypatch) -> None:
    monkeypatch.setattr(module, "_SHELVES_MAX", 2)
    shelves = Shelves(process_hasher(), 1000, 2.0)
    for model in "abc":
        teller = Teller(model, shelves)
        teller.store(stored(tier="shared", is_shared=True))
        assert teller.held is not None
        teller.clear()
    assert [shelf.model for shelf in (*shelves.all_of("b"), *shelves.all_of("c"))] == ["b", "c"]
