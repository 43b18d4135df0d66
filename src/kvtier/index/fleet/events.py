"""The KV events of a replica, decoded: the precise index knows no wire format.

Invariant: the name of a block is 60 bits of the engine's own hash, the same whether the engine
sends it as a number or as bytes. Names only have to be distinct within one replica.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

_NAME_BITS: Final = (1 << 60) - 1
"""A Python int of 60 bits takes 32 bytes; one of 64 bits takes 48."""
_TAIL_BYTES: Final = 8


class BlocksStored(msgspec.Struct, kw_only=True, gc=False):
    """Consecutive blocks of one prefix entered a tier."""

    names: list[int]
    parent: int | None
    """The block before the first one; None if there is none, or if the engine does not say."""
    token_ids: Sequence[int]
    """The tokens of all blocks; empty if the engine sends only the names."""
    block_tokens: int
    tier: str
    is_shared: bool = False
    """The tier is storage that other replicas read as well."""
    adapter: str = ""
    extra_keys: Sequence[Any] | None = None
    """By block: what distinguishes it besides its tokens (images, salts); None for nothing."""
    group: int = 0
    """The number of the engine's KV-cache group."""
    kind: str = ""
    """The engine's name for the group's kind of attention; empty if it does not say."""


class BlocksRemoved(msgspec.Struct, kw_only=True, gc=False):
    """Blocks left a tier."""

    names: list[int]
    tier: str
    is_shared: bool = False
    group: int | None = None
    """The number of the KV-cache group; None, if the engine does not say, is the indexed group."""


class DeviceCleared(msgspec.Struct, gc=False):
    """All blocks left the replica's device."""


KVEvent = BlocksStored | BlocksRemoved | DeviceCleared


def split_event(event: KVEvent, blocks_max: int) -> Iterator[KVEvent]:
    """Yield the same as events of at most `blocks_max` blocks each, in order."""
    if isinstance(event, DeviceCleared) or len(event.names) <= blocks_max:
        yield event
        return
    names = event.names
    starts = range(0, len(names), blocks_max)
    if isinstance(event, BlocksRemoved):
        for at in starts:
            yield msgspec.structs.replace(event, names=names[at : at + blocks_max])
        return
    size = event.block_tokens if event.token_ids else 0
    if len(event.token_ids) != size * len(names):
        yield event  # It is malformed, and the index rejects it as a whole.
        return
    keys = event.extra_keys
    for at in starts:
        end = at + blocks_max
        yield msgspec.structs.replace(
            event,
            names=names[at:end],
            parent=names[at - 1] if at else event.parent,
            token_ids=event.token_ids[at * size : end * size],
            extra_keys=None if keys is None else keys[at:end],
        )


def block_name(engine_hash: int | bytes) -> int:
    """Return the name of a block; an engine's number is the last 64 bits of its bytes."""
    if isinstance(engine_hash, bytes):
        engine_hash = int.from_bytes(engine_hash[-_TAIL_BYTES:], "big")
    return engine_hash & _NAME_BITS
