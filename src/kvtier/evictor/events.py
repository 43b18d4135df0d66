"""What left a store, in the bytes of vLLM's KV events: whoever reads those can read these.

Why: a router keeps an index of who has which block; what an evictor removes from shared storage
no engine tells. Specified in docs/reference/evictor.md. Nothing here touches a socket.

Invariants: one message is of one tree; an event is of one KV-cache group.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from kvtier.evictor.layouts import Tree

MEDIUM: Final = "STORAGE"
LOCALITY: Final = "REMOTE"
INT_HASHES: Final = "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES"
"""vLLM's variable: 0 for whole hashes, anything else for their last 64 bits as a number."""

Owner = Literal["shared", "objectstore"]
"""The tier whose blocks these are, as engines name it in their own events."""

_GROUP_BYTES = 4
_LAST_64_BITS = (1 << 64) - 1
_RANK = 0
"""Events carry the rank of a data-parallel engine. An evictor is none; one engine has rank 0."""


class BlockRemoved(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Blocks of one group that are in shared storage no more. Fields and order are vLLM's."""

    block_hashes: list[int] | list[bytes]
    medium: str
    group_idx: int
    locality: str
    ownership: str


class EventBatch(msgspec.Struct, frozen=True, array_like=True):
    """The third part of a message."""

    ts: float
    """Unix seconds of the sender's clock."""
    events: list[BlockRemoved]
    data_parallel_rank: int = _RANK


def topic(tree: Tree, model: str) -> bytes:
    """`kv@<folder>@<model>`: where engines have their pod, the key space stands."""
    return f"kv@{tree.name}@{model}".encode()


def block_of(hashed: bytes, group: int) -> bytes:
    """The key of a block as `encode_removed` takes it."""
    return hashed + group.to_bytes(_GROUP_BYTES, "big")


def encode_removed(
    keys: Sequence[bytes], owner: Owner, now_s: float, *, whole_hashes: bool
) -> bytes:
    """Keys are a block's hash and 4 bytes of group index. A microsecond a key."""
    groups: dict[int, list[bytes]] = {}
    for key in keys:
        group = int.from_bytes(key[-_GROUP_BYTES:], "big")
        groups.setdefault(group, []).append(key[:-_GROUP_BYTES])
    events = [
        BlockRemoved(
            hashes if whole_hashes else [_shortened(one) for one in hashes],
            MEDIUM,
            group,
            LOCALITY,
            owner,
        )
        for group, hashes in groups.items()
    ]
    return msgspec.msgpack.encode(EventBatch(now_s, events))


def wants_whole_hashes(env: Mapping[str, str]) -> bool:
    """As vLLM decides it, so that both name a block alike."""
    return env.get(INT_HASHES, "1").strip() == "0"


def _shortened(hashed: bytes) -> int:
    return int.from_bytes(hashed, "big") & _LAST_64_BITS
