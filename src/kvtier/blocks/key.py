"""The identity of a block: its key inside a key space, and the key space itself.

Engines hash token ids, but not the model that computed the bytes. `KeySpace` holds everything that
the bytes depend on and the hash does not cover; blocks of two key spaces are never exchanged.
"""

import hashlib
from typing import Final, NewType

import msgspec

from kvtier.errors import InvalidSettings

BlockKey = NewType("BlockKey", bytes)
"""A block hash and a 4-byte big-endian KV-cache-group index: unique inside one key space."""

UNKNOWN_PARENT: Final = BlockKey(b"")
"""Stands for a predecessor whose key is not known; None stands for "no predecessor"."""


class GroupShape(msgspec.Struct, frozen=True, kw_only=True):
    """The tokens and the layers that a block of one KV-cache group covers."""

    tokens_per_block: int
    layers: str
    """A digest of the ordered layer names."""


class KeySpace(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that the bytes of a block depend on, except the tokens.

    Two engines may share blocks only if all fields are equal. `digest` names the space on disk;
    `differing` lists the fields that differ, for error messages.
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
    """The workers that a block is divided among: `tp_size` by tensor, `pp_size` by pipeline. All
    three are 1 if a block holds every KV head and so is the same for any number of workers."""
    tp_size: int
    pp_size: int
    hash_algorithm: str
    hash_seed: str
    isa: str

    @property
    def digest(self) -> str:
        """The SHA-256 of the canonical JSON of all fields, as 64 hex digits."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """Encode as canonical JSON: the fields are sorted, so equal spaces give equal bytes."""
        return msgspec.json.encode(self, order="sorted")

    @classmethod
    def from_json(cls, raw: bytes) -> "KeySpace":
        """Decode JSON. Raises InvalidSettings if it is not a key space."""
        try:
            return msgspec.json.decode(raw, type=cls)
        except msgspec.MsgspecError as error:
            raise InvalidSettings(f"not a kvtier key-space manifest: {error}") from error

    def differing(self, other: "KeySpace") -> list[str]:
        """Return `field: mine != theirs` for each field that differs."""
        return [
            f"{name}: {getattr(self, name)!r} != {getattr(other, name)!r}"
            for name in self.__struct_fields__
            if getattr(self, name) != getattr(other, name)
        ]
