from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.events import (
    BlocksRemoved,
    BlocksStored,
    DeviceCleared,
    KVEvent,
    block_name,
)
from kvtier.router.learn import wire
from kvtier.router.learn.wire import decode, tier_of

STORED: dict[str, Any] = {
    "type": "BlockStored",
    "block_hashes": [2**64 - 1, b"\xff" * 32],
    "parent_block_hash": 7,
    "token_ids": [1, 2, 3, 4],
    "block_size": 2,
    "lora_id": None,
    "medium": "CPU",
    "lora_name": "lora",
    "extra_keys": [["lora", ["image", 3]], None],
    "group_idx": 1,
    "kv_cache_spec_kind": "full_attention",
    "kv_cache_spec_sliding_window": None,
    "locality": "LOCAL",
    "ownership": None,
}
REMOVED: dict[str, Any] = {
    "type": "BlockRemoved",
    "block_hashes": [1],
    "medium": "STORAGE",
    "group_idx": 0,
    "locality": "REMOTE",
    "ownership": "shared",
}
CLEARED: dict[str, Any] = {"type": "AllBlocksCleared"}


def pack(*events: Any, ts: Any = 1.5) -> bytes:
    return msgspec.msgpack.encode([ts, list(events), 0])


@pytest.mark.parametrize("form", ["map", "array"])
def test_decode_reads_events_as_maps_and_arrays(form) -> None:
    events = [STORED, REMOVED, CLEARED]
    if form == "array":
        events = [list(event.values()) for event in events]
    batch = decode(pack(*events))
    assert batch is not None
    assert (batch.sent_s, batch.bad_events) == (1.5, 0)
    stored, removed, cleared = batch.events
    assert stored == BlocksStored(
        names=[2**60 - 1, 2**60 - 1],
        parent=7,
        token_ids=[1, 2, 3, 4],
        block_tokens=2,
        tier="ram",
        adapter="lora",
        extra_keys=[["lora", ["image", 3]], None],
        group=1,
        kind="full_attention",
    )
    assert removed == BlocksRemoved(names=[1], tier="shared", is_shared=True, group=0)
    assert cleared == DeviceCleared()


def test_adapter_without_name_differs_from_model() -> None:
    batch = decode(pack(["BlockStored", [9], None, [1, 2], 2, 7, "GPU"]))
    assert batch is not None
    (stored,) = batch.events
    assert isinstance(stored, BlocksStored)
    assert stored.adapter not in ("", "7")


@pytest.mark.parametrize(
    "event",
    [
        ["BlockStored", [9], None, [1, 2], 2],
        ["BlockStored", [9], None, [1, 2], 2, None],
        ["BlockStored", [9], None, [1, 2], 2, None, "GPU", None, None, 0, "x", None, None, None, 1],
        {**STORED, "block_hashes": [9], "medium": None, "a field of next year": {"a": 1}},
    ],
)
def test_decode_accepts_missing_and_additional_fields(event) -> None:
    batch = decode(pack(event))
    assert batch is not None
    (stored,) = batch.events
    assert isinstance(stored, BlocksStored)
    assert (stored.names, stored.tier) == ([9], DEVICE)


@pytest.mark.parametrize(
    "bad",
    [
        {**STORED, "type": "BlockMoved"},
        {**STORED, "block_hashes": 3},
        {**STORED, "block_hashes": ["text"]},
        {**STORED, "token_ids": [-1]},
        {**STORED, "token_ids": [2**32]},
        {**STORED, "token_ids": [1.5]},
        {**STORED, "block_size": "16"},
        {"type": "BlockRemoved"},
        {},
        ["BlockStored", [1]],
        [],
        None,
        7,
        "text",
    ],
)
def test_malformed_event_does_not_affect_others(bad) -> None:
    batch = decode(pack(CLEARED, bad, REMOVED))
    assert batch is not None
    assert batch.bad_events == 1
    assert [type(event) for event in batch.events] == [DeviceCleared, BlocksRemoved]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\xdd\xff\xff\xff\xff",  # an array of four billion elements
        b"\x92\xcb?\xf8\x00\x00\x00\x00\x00\x00\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",  # a string of four billion bytes
        b"\x91" * 100_000,
        msgspec.msgpack.encode([1.5]),
        msgspec.msgpack.encode(["time", []]),
        msgspec.msgpack.encode({"ts": 1.5, "events": []}),
        pack(STORED)[:-1],
    ],
)
def test_malformed_message_is_none(payload) -> None:
    assert decode(payload) is None


def test_message_with_too_many_events_is_none() -> None:
    def some(events: int) -> bytes:
        return b"\x92" + msgspec.msgpack.encode(1.0) + b"\xdd" + events.to_bytes(4, "big")

    assert decode(some(wire.EVENTS_MAX + 1) + bytes(wire.EVENTS_MAX + 1)) is None
    batch = decode(some(wire.EVENTS_MAX) + bytes(wire.EVENTS_MAX))
    assert batch is not None
    assert batch.bad_events == wire.EVENTS_MAX


def test_too_many_malformed_events_end_decoding(monkeypatch) -> None:
    tried = 0

    def event(raw: msgspec.Raw) -> object:
        nonlocal tried
        tried += 1
        return original(raw)

    original = wire._decode_event
    monkeypatch.setattr(wire, "_decode_event", event)
    monkeypatch.setattr(wire, "_BAD_MAX", 3)
    batch = decode(pack(CLEARED, 0, 0, CLEARED, 0, REMOVED, 0, CLEARED))
    assert batch is not None
    assert [type(event) for event in batch.events] == [DeviceCleared, DeviceCleared]
    assert (batch.bad_events, tried) == (6, 5)
    batch = decode(pack(CLEARED, 0, 0, REMOVED))
    assert batch is not None
    assert (len(batch.events), batch.bad_events) == (2, 2)


def test_deeply_nested_values_do_not_raise() -> None:
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    batch = decode(pack({**REMOVED, "new": deep}, CLEARED))
    assert batch is not None
    assert len(batch.events) + batch.bad_events == 2


def test_message_that_is_too_large_is_none(monkeypatch) -> None:
    monkeypatch.setattr(wire, "PAYLOAD_MAX", 10)
    assert decode(pack(CLEARED)) is None


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from([*STORED, *REMOVED])
events = st.one_of(
    values,
    st.builds(lambda changes: {**STORED, **changes}, st.dictionaries(keys, values, max_size=3)),
    st.builds(lambda changes: {**REMOVED, **changes}, st.dictionaries(keys, values, max_size=3)),
    st.builds(lambda rest: ["BlockStored", *rest], st.lists(values, max_size=12)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(events, max_size=4), st.floats() | values)
def test_decode_never_raises_on_any_event(some, ts) -> None:
    batch = decode(pack(*some, ts=ts))
    if batch is not None:
        assert len(batch.events) + batch.bad_events == len(some)
        assert isinstance(batch.sent_s, float)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 150), st.binary(max_size=4))
def test_decode_never_raises_on_any_bytes(garbage, at, patch) -> None:
    whole = pack(STORED, REMOVED)
    for payload in (garbage, whole[:at] + patch + whole[at + len(patch) :]):
        batch = decode(payload)
        assert batch is None or all(isinstance(event, KVEvent) for event in batch.events)


def test_tier_of_medium_and_owner() -> None:
    called = [
        (None, None, DEVICE),
        ("GPU", None, DEVICE),
        ("gpu", None, DEVICE),
        ("CPU", None, "ram"),
        ("STORAGE", "disk", "disk"),
        ("STORAGE", "objectstore", "objectstore"),
        ("STORAGE", None, "disk"),
        ("storage", "fs", "fs"),
        ("LMCache-Remote", None, "lmcache-remote"),
        ("../..\n", None, "storage"),
        ("STORAGE", "x" * 100, "storage"),
    ]
    for medium, owner, tier in called:
        assert tier_of(medium, owner) == tier


def test_integer_hash_is_named_as_its_bytes() -> None:
    assert block_name(b"\x01" * 32) == block_name(int.from_bytes(b"\x01" * 8, "big"))


@pytest.mark.parametrize("sent_s", [float("nan"), float("inf"), float("-inf")])
def test_message_with_non_finite_time_is_none(sent_s: float) -> None:
    assert decode(msgspec.msgpack.encode([sent_s, [], 0])) is None
    assert decode(msgspec.msgpack.encode([sent_s, [["Unheard"]], 0])) is None
