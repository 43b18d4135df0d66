"""What a replica tells of its caches, decoded: the precise index knows no wire format.

Invariant: a block's name is 60 bits of the engine's own hash, the same whether the engine tells
it as a number or as bytes: names only have to be told apart within one replica.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

_NAME_BITS: Final = (1 << 60) - 1
"""A Python int of 60 bits takes 32 bytes, one of 64 takes 48."""
_TAIL_BYTES: Final = 8


class Stored(msgspec.Struct, kw_only=True, gc=False):
    """Blocks that entered a tier: consecutive blocks of one prefix."""

    names: list[int]
    parent: int | None
    """The block before the first; None: there is none, or it is not told."""
    token_ids: Sequence[int]
    """Of all blocks; empty where the engine names blocks without saying what is in them."""
    block_tokens: int
    tier: str
    is_shared: bool = False
    """The tier is storage that other replicas read as well."""
    adapter: str = ""
    extra_keys: Sequence[Any] | None = None
    """By block: what besides its tokens tells it from others (images, salts); None: nothing."""
    group: int = 0
    """Of the engine's KV-cache groups."""
    kind: str = ""
    """Of the group's attention, as the engine calls it; empty: not told."""


class Removed(msgspec.Struct, kw_only=True, gc=False):
    """Blocks that left a tier."""

    names: list[int]
    tier: str
    is_shared: bool = False
    group: int | None = None
    """None: not told, so the group that counts."""


class Cleared(msgspec.Struct, gc=False):
    """All blocks of the replica's device are gone."""


Change = Stored | Removed | Cleared


def parts_of(change: Change, most: int) -> Iterator[Change]:
    """The same in changes of at most so many blocks, in order."""
    if isinstance(change, Cleared) or len(change.names) <= most:
        yield change
        return
    names = change.names
    starts = range(0, len(names), most)
    if isinstance(change, Removed):
        for at in starts:
            yield msgspec.structs.replace(change, names=names[at : at + most])
        return
    size = change.block_tokens if change.token_ids else 0
    if len(change.token_ids) != size * len(names):
        yield change  # which nobody will take
        return
    keys = change.extra_keys
    for at in starts:
        end = at + most
        yield msgspec.structs.replace(
            change,
            names=names[at:end],
            parent=names[at - 1] if at else change.parent,
            token_ids=change.token_ids[at * size : end * size],
            extra_keys=None if keys is None else keys[at:end],
        )


def name_of(engine_hash: int | bytes) -> int:
    """Of a block, from the engine's hash. A number there is the last 64 bits of the bytes."""
    if isinstance(engine_hash, bytes):
        engine_hash = int.from_bytes(engine_hash[-_TAIL_BYTES:], "big")
    return engine_hash & _NAME_BITS
