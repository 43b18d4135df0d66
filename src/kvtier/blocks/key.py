"""Identity of a block: the key inside a key space, and the key space itself.

Why it exists: engines hash token ids, not the model that made the bytes. Whatever the bytes
depend on and the hash does not cover stands in `KeySpace`; blocks of two key spaces never mix.
"""

import hashlib
from typing import Final, NewType

import msgspec

from kvtier.errors import InvalidSettings

BlockKey = NewType("BlockKey", bytes)
"""Block hash plus a 4-byte big-endian KV-cache-group index, unique inside one key space."""

UNKNOWN_PARENT: Final = BlockKey(b"")
"""Stands for a predecessor whose key is not known; None stands for "no predecessor"."""


class GroupShape(msgspec.Struct, frozen=True, kw_only=True):
    """What a KV-cache group's block holds: tokens covered and the layers it spans."""

    tokens_per_block: int
    layers: str
    """Digest of the ordered layer names."""


class KeySpace(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the bytes of a block depend on, apart from the tokens.

    Two engines may share blocks only if every field is equal. `digest` names the space on
    disk; `differing` lets a person see which field keeps two spaces apart.
    """

    engine: str
    model: str
    revision: str
    weights: str
    dtype: str
    layout: str
    block_bytes: int
    blocks_per_chunk: int
    tokens_per_hash: int
    groups: tuple[GroupShape, ...]
    world_size: int
    """Workers a block is divided among, by tensor (`tp_size`) and pipeline (`pp_size`); all are
    1 where a block holds every KV head and so is the same for any number of workers."""
    tp_size: int
    pp_size: int
    hash_algorithm: str
    hash_seed: str
    isa: str

    @property
    def digest(self) -> str:
        """64 hex digits of sha256 over the canonical JSON of all fields."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """Canonical JSON: sorted fields, so equal spaces give equal bytes."""
        return msgspec.json.encode(self, order="sorted")

    @classmethod
    def from_json(cls, raw: bytes) -> "KeySpace":
        """Parse a manifest. Raises InvalidSettings if it is not a key space."""
        try:
            return msgspec.json.decode(raw, type=cls)
        except msgspec.MsgspecError as error:
            raise InvalidSettings(f"not a kvtier key-space manifest: {error}") from error

    def differing(self, other: "KeySpace") -> list[str]:
        """`field: mine != theirs` for every field that differs."""
        return [
            f"{name}: {getattr(self, name)!r} != {getattr(other, name)!r}"
            for name in self.__struct_fields__
            if getattr(self, name) != getattr(other, name)
        ]
