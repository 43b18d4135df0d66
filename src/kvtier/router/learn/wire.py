"""The wire format of KV events, decoded into those of the precise index.

A payload is msgpack: `[time, events, data-parallel rank]`. An event is a map with its `type` (vLLM
since 0.32) or an array that begins with it (earlier versions, and other engines that follow vLLM).
Both forms are accepted.

Invariants: decoding never raises, whatever the bytes; malformed events are counted, and do not
affect the others of the message; time and memory are linear in the size of a message.
"""

import math
import re
from typing import Annotated, Any, Final

import msgspec

from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.events import (
    BlocksRemoved,
    BlocksStored,
    DeviceCleared,
    KVEvent,
    block_name,
)

PAYLOAD_MAX: Final = 16 << 20
"""The largest message in bytes; a full one of vLLM has a few megabytes."""
EVENTS_MAX: Final = 1 << 18
"""The most events per message. vLLM sends one per removed block, and has fewer blocks than this."""

_BAD_MAX: Final = 1000
"""The malformed events after which the rest of a message is skipped; each costs a microsecond."""
_REMOTE: Final = "remote"
_UNNAMED: Final = "storage"
"""The name of a slow tier whose reported name is not valid."""
_TIERS: Final = {
    **dict.fromkeys(("gpu", "device", "hbm", "xpu", "tpu"), DEVICE),
    **dict.fromkeys(("cpu", "host", "ram", "dram", "cpu_pinned"), "ram"),
    **dict.fromkeys(("disk", "file", "nvme", "ssd"), "disk"),
}
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")

_Token = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_Hash = int | bytes


class _Store(msgspec.Struct, tag="BlockStored", gc=False):
    block_hashes: list[_Hash]
    parent_block_hash: _Hash | None
    token_ids: list[_Token]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: list[Any] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None


class _Remove(msgspec.Struct, tag="BlockRemoved", gc=False):
    block_hashes: list[_Hash]
    medium: str | None = None
    group_idx: int | None = None
    locality: str | None = None
    ownership: str | None = None


class _Clear(msgspec.Struct, tag="AllBlocksCleared", gc=False):
    pass


class _StoreArray(_Store, tag="BlockStored", array_like=True, gc=False):
    pass


class _RemoveArray(_Remove, tag="BlockRemoved", array_like=True, gc=False):
    pass


class _ClearArray(_Clear, tag="AllBlocksCleared", array_like=True, gc=False):
    pass


# msgspec checks the length before it decodes any element.
_Length = msgspec.Meta(max_length=EVENTS_MAX)


class _Maps(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: Annotated[list[_Store | _Remove | _Clear], _Length]


class _Arrays(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: Annotated[list[_StoreArray | _RemoveArray | _ClearArray], _Length]


class _Raws(msgspec.Struct, array_like=True, gc=False):
    ts: float
    events: Annotated[list[msgspec.Raw], _Length]


class Batch(msgspec.Struct, gc=False):
    """The events of one message."""

    sent_s: float | None
    """The time by the sender's clock, which distinguishes a repeated message from that of a
    restarted sender. None if the message cannot be decoded."""
    events: list[KVEvent]
    bad_events: int = 0


_FAULTS = (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, MemoryError)

_MAPS = msgspec.msgpack.Decoder(_Maps)
_ARRAYS = msgspec.msgpack.Decoder(_Arrays)
_RAWS = msgspec.msgpack.Decoder(_Raws)
_EVENTS = (
    msgspec.msgpack.Decoder(_Store | _Remove | _Clear),
    msgspec.msgpack.Decoder(_StoreArray | _RemoveArray | _ClearArray),
)


def decode(payload: bytes) -> Batch | None:
    """Return the events of a message; None if it is malformed. May run on a thread.

    Takes two microseconds and 0.1 per block, and at worst 0.1 s per megabyte.
    """
    if len(payload) > PAYLOAD_MAX:
        return None
    found: _Maps | _Arrays
    try:
        found = _MAPS.decode(payload)
    except _FAULTS:
        try:
            found = _ARRAYS.decode(payload)
        except _FAULTS:
            return _salvage(payload)
    if not math.isfinite(found.ts):
        return None  # such a time would make every later message look like a repeated one
    return Batch(found.ts, [_kv_event(event) for event in found.events])


def _salvage(payload: bytes) -> Batch | None:
    """Decode a message event by event, skipping malformed ones; stop after too many of them."""
    try:
        found = _RAWS.decode(payload)
    except _FAULTS:
        return None
    if not math.isfinite(found.ts):
        return None
    batch = Batch(found.ts, [])
    for raw in found.events:
        event = _decode_event(raw)
        if event is not None:
            batch.events.append(_kv_event(event))
            continue
        batch.bad_events += 1
        if batch.bad_events == _BAD_MAX:
            batch.bad_events = len(found.events) - len(batch.events)
            break
    return batch


def _decode_event(raw: msgspec.Raw) -> _Store | _Remove | _Clear | None:
    for decoder in _EVENTS:
        try:
            event: _Store | _Remove | _Clear = decoder.decode(raw)
        except _FAULTS:
            continue
        return event
    return None


def _kv_event(event: _Store | _Remove | _Clear) -> KVEvent:
    if isinstance(event, _Clear):
        return DeviceCleared()
    names = list(map(block_name, event.block_hashes))
    tier = tier_of(event.medium, event.ownership)
    is_shared = tier != DEVICE and (event.locality or "").lower() == _REMOTE
    if isinstance(event, _Remove):
        return BlocksRemoved(names=names, tier=tier, is_shared=is_shared, group=event.group_idx)
    parent = event.parent_block_hash
    return BlocksStored(
        names=names,
        parent=None if parent is None else block_name(parent),
        token_ids=event.token_ids,
        block_tokens=event.block_size,
        tier=tier,
        is_shared=is_shared,
        adapter=_adapter(event),
        extra_keys=event.extra_keys,
        group=event.group_idx or 0,
        kind=event.kv_cache_spec_kind or "",
    )


def _adapter(event: _Store) -> str:
    """Return the adapter's name; one known by number only gets a name that no request can use.

    It must not be mistaken for the base model.
    """
    if event.lora_name or event.lora_id is None:
        return event.lora_name or ""
    return f"\0{event.lora_id}"


def tier_of(medium: str | None, owner: str | None) -> str:
    """Return the tier's name for an event's `medium`; engines without tiers send none.

    For `STORAGE` the tier is named by its owner, such as kvtier's `disk`, `shared`, `objectstore`.
    """
    called = (medium or "gpu").lower()
    tier = _TIERS.get(called)
    if tier is not None:
        return tier
    name = (owner or "").lower() if called == _UNNAMED else called
    name = name or "disk"
    return name if _NAME.fullmatch(name) else _UNNAMED
