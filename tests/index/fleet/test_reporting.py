"""Which events are used and how; test_precise has the model of the whole index."""

from typing import Any

import pytest

from kvtier.index.fleet import reporting as module
from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.events import BlocksRemoved, BlocksStored
from kvtier.index.fleet.prompt import NUMBERS_MAX, TokenPrompt, process_hasher
from kvtier.index.fleet.reporting import ReplicaGroups, ReportingReplica

TOKENS = list(range(48))


def reported(*events: BlocksStored | BlocksRemoved) -> tuple[ReportingReplica, ReplicaGroups]:
    groups = ReplicaGroups(process_hasher(), 1000, 2.0)
    replica = ReportingReplica("m", groups)
    for event in events:
        if isinstance(event, BlocksStored):
            replica.store(event)
        else:
            replica.remove(event)
    return replica, groups


def stored(**changes: Any) -> BlocksStored:
    event: dict[str, Any] = {
        "names": [1, 2, 3],
        "parent": None,
        "token_ids": TOKENS,
        "block_tokens": 16,
        "tier": DEVICE,
    }
    return BlocksStored(**{**event, **changes})


def blocks(replica: ReportingReplica, prompt: TokenPrompt, level: int = 0) -> int:
    if replica.group is None or replica.held is None:
        return 0
    return replica.group.table.ends(prompt.chain(16)).reach(replica.held.slot, 1 << level)


PROMPT = TokenPrompt(TOKENS, "m")


def test_reported_blocks_are_hashed_like_prompts() -> None:
    whole, _ = reported(stored())
    assert blocks(whole, PROMPT) == 3
    parts, _ = reported(
        stored(names=[1], token_ids=TOKENS[:16]),
        stored(names=[2, 3], token_ids=TOKENS[16:], parent=1),
    )
    assert blocks(parts, PROMPT) == 3


def test_adapters_and_salts_are_scope_and_images_are_content() -> None:
    adapter, _ = reported(stored(adapter="lora", extra_keys=[("lora",), ("lora",), ("lora",)]))
    assert blocks(adapter, PROMPT) == 0
    assert blocks(adapter, TokenPrompt(TOKENS, "lora")) == 3
    salted, _ = reported(stored(adapter="lora", extra_keys=[("lora", "pepper"), None, None]))
    assert blocks(salted, TokenPrompt(TOKENS, "lora")) == 0
    assert blocks(salted, TokenPrompt(TOKENS, "lora", salt="pepper")) == 3
    alike, _ = reported(stored(adapter="lora", extra_keys=[("lora", "lora"), ("lora",), ("lora",)]))
    assert blocks(alike, TokenPrompt(TOKENS, "lora", salt="lora")) == 3
    image, _ = reported(stored(extra_keys=[None, [["image", 3]], None]))
    assert blocks(image, PROMPT) == 1


def test_event_without_tokens_refers_to_known_blocks() -> None:
    replica, groups = reported(
        stored(), stored(names=[2, 9], token_ids=[], block_tokens=0, tier="ram")
    )
    assert replica.held is not None
    assert [replica.held.table.own_byte(hashed, 1) for hashed in PROMPT.chain(16)] == [127] * 3
    replica.remove(BlocksRemoved(names=[3, 2], tier=DEVICE))
    assert [blocks(replica, PROMPT, level) for level in (0, 1)] == [1, 2]
    assert groups.ignored_blocks == {"unknown": 1}


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
        (BlocksRemoved(names=[4], tier=DEVICE, group=0), "unknown"),
        (BlocksRemoved(names=[1], tier=DEVICE, group=1), "group"),
    ],
)
def test_unusable_event_is_counted_and_changes_nothing(event, reason) -> None:
    replica, groups = reported(stored(), event)
    assert set(groups.ignored_blocks) - {reason} == set()
    assert groups.ignored_blocks[reason] == len(event.names)
    assert blocks(replica, PROMPT) == 3
    assert replica.held is not None
    assert len(replica.held) == 3


def test_events_before_known_block_size_are_ignored() -> None:
    _, groups = reported(
        stored(token_ids=[], block_tokens=0),
        BlocksRemoved(names=[1], tier=DEVICE),
        stored(block_tokens=NUMBERS_MAX + 1, names=[1], token_ids=range(NUMBERS_MAX + 1)),
    )
    assert groups.ignored_blocks == {"unknown": 4, "block_size": 1}


def test_prefix_beyond_numbers_max_is_ignored() -> None:
    half = NUMBERS_MAX // 2
    replica, groups = reported(
        stored(names=[1], token_ids=range(half), block_tokens=half),
        stored(names=[2, 3], parent=1, token_ids=range(2 * half), block_tokens=half),
    )
    assert replica.held is not None
    assert len(replica.held) == 2
    assert groups.ignored_blocks == {"too_long": 1}


def test_full_attention_group_replaces_guessed_group() -> None:
    replica, _ = reported(
        stored(group=0),
        stored(group=1, kind="full_attention", token_ids=TOKENS[:32], names=[7, 8]),
        stored(group=0),
    )
    assert blocks(replica, PROMPT) == 2
    replica.remove(BlocksRemoved(names=[7], tier=DEVICE, group=0))
    assert blocks(replica, PROMPT) == 2


def test_event_of_one_tier_too_many_is_counted() -> None:
    _, groups = reported(*(stored(tier=tier) for tier in ("x", "y", "z")))
    assert groups.ignored_blocks == {"tier": 3}


def test_number_of_groups_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(module, "_GROUPS_MAX", 3)
    groups = ReplicaGroups(process_hasher(), 1000, 2.0)
    replica = ReportingReplica("m", groups)
    for size in range(1, 20):
        replica.store(stored(names=[1], token_ids=range(size), block_tokens=size))
        replica.reset()
        assert groups.pools == []
    for size in range(1, 6):
        ReportingReplica("m", groups).store(
            stored(names=[1], token_ids=range(size), block_tokens=size)
        )
    assert len(groups.pools) == 3
    assert groups.ignored_blocks == {"block_size": 2}


def test_largest_block_size_is_adopted() -> None:
    part = stored(names=[9], token_ids=TOKENS[:8], block_tokens=8)
    for tail in (part, stored(names=[9], parent=1, token_ids=TOKENS[:8], block_tokens=8)):
        replica, groups = reported(tail, stored())
        assert blocks(replica, PROMPT) == 3
        replica.store(part)
        assert groups.ignored_blocks["block_size"] == 1
        assert blocks(replica, PROMPT) == 3


def test_clear_device_without_other_tiers_releases_slot() -> None:
    replica, groups = reported(stored())
    replica.clear_device()
    assert replica.held is None
    assert replica.is_whole
    replica.store(stored())
    assert blocks(replica, PROMPT) == 3
    replica.store(stored(tier="ram"))
    for _ in range(2):
        replica.clear_device()
        assert (blocks(replica, PROMPT), blocks(replica, PROMPT, 1)) == (0, 3)
    replica.store(stored())
    replica.clear_device()
    assert (blocks(replica, PROMPT), blocks(replica, PROMPT, 1)) == (0, 3)
    assert not groups.ignored_blocks


def test_clear_device_keeps_pool_membership() -> None:
    replica, _ = reported(stored(), stored(tier="shared", is_shared=True))
    replica.clear_device()
    assert blocks(replica, PROMPT) == 0
    assert blocks(replica, PROMPT, 3) == 3


def test_replica_is_whole_only_after_begin() -> None:
    replica, _ = reported(stored())
    assert not replica.is_whole
    replica.begin()
    assert replica.is_whole
    replica.reset()
    assert not replica.is_whole


def test_unused_groups_make_room_for_new_ones(monkeypatch) -> None:
    monkeypatch.setattr(module, "_GROUPS_MAX", 2)
    groups = ReplicaGroups(process_hasher(), 1000, 2.0)
    for model in "abc":
        replica = ReportingReplica(model, groups)
        replica.store(stored(tier="shared", is_shared=True))
        assert replica.held is not None
        replica.reset()
    assert [group.model for group in (*groups.of_model("b"), *groups.of_model("c"))] == ["b", "c"]
