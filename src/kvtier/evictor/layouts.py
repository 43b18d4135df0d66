"""The layouts of stores: what a file is, by its name.

An evictor deletes files, so it must recognize them. Two layouts are known by the names of their
folders: kvtier's `<model>-<16 hex digits>` (docs/reference/format.md), and
`<model>_<12 hex digits>[_r<rank>]` of vLLM's `fs` tier and llm-d's file system backend.

Invariants: a file that is not recognized is UNKNOWN, never a block; each file of a tree is in
exactly one of its sixteen shards, by the first hex digit of its block, or outside of them.
"""

import enum
import re
from typing import Final, NamedTuple

from kvtier.tiers.files import MANIFEST_NAME
from kvtier.tiers.shared.format import KEY_BYTES_MAX, KEY_BYTES_MIN
from kvtier.tiers.shared.store import is_temporary

SHARDS: Final = tuple("0123456789abcdef")
LEASES: Final = "leases"
"""The folder of the files that evictors write for each other."""

_NOTES = ".kvtier-"
"""Prefix of the files that other commands write at the top of a store."""
_OWN_TOP = re.compile(r"(?P<model>[A-Za-z0-9_][A-Za-z0-9._-]*)-[0-9a-f]{16}")
_FOREIGN_TOP = re.compile(r"(?P<model>[A-Za-z0-9._-]+)_[0-9a-f]{12}(_r\d+)?")
_SEGMENT = re.compile(r"blocks/([0-9a-f]{3})/(\1[0-9a-f]*)\.kvt")
_OWN_FILES = re.compile(
    r"access/[^/]+\.log|access/summary-[0-9a-f]\.\d{10}\.bin|quarantine/[^/]+\.kvt"
)
_FOREIGN_FOLDER = re.compile(r"[0-9a-f]{3}")
_FOREIGN_BLOCK = re.compile(r"[0-9a-f]{3}/[0-9a-f]{2}_g(\d{1,9})/([0-9a-f]+)\.bin")
_FOREIGN_TEMPORARY = re.compile(r"(.+\.bin|\.o_direct_probe).*\.tmp[^/]*")


class FileTreatment(enum.Enum):
    """How an evictor treats a file, by the name of the file."""

    BLOCK = "block"
    """A block, which may be evicted because engines can compute it again."""
    TEMPORARY = "temporary"
    """A file being written, or left by a dead writer."""
    KEPT = "kept"
    """A file of the layout that is never evicted: a manifest, a journal, a quarantined segment."""
    UNKNOWN = "unknown"
    """A file of no known layout."""


class StoreTree(NamedTuple):
    """A folder at the top of a store that has a known layout."""

    name: str
    is_foreign: bool
    """True for the layout of other systems."""

    @property
    def model(self) -> str:
        """The model as in the folder's name: readable, but shortened and not unique."""
        found = (
            _FOREIGN_TOP.fullmatch(self.name) if self.is_foreign else _OWN_TOP.fullmatch(self.name)
        )
        return found["model"] if found else self.name

    @property
    def blocks(self) -> str:
        """The folder whose names begin with the first hex digit of a block."""
        return self.name if self.is_foreign else f"{self.name}/blocks"

    def shard(self, shard: str) -> str:
        """Return the prefix of all names in a shard."""
        return f"{self.blocks}/{shard}"

    def kind(self, name: str) -> FileTreatment:
        """Return the kind of a file in this tree, by its name alone."""
        below = name[len(self.name) + 1 :]
        if (_FOREIGN_BLOCK.fullmatch(below)) if self.is_foreign else key_of(below):
            return FileTreatment.BLOCK
        last = below.rpartition("/")[2]
        if is_temporary(last) or (self.is_foreign and _FOREIGN_TEMPORARY.fullmatch(last)):
            return FileTreatment.TEMPORARY
        kept = below == "config.json" if self.is_foreign else _is_own(below)
        return FileTreatment.KEPT if kept else FileTreatment.UNKNOWN

    def pack(self, name: str) -> bytes:
        """Return the name of a block in the short form that `unpack` reads."""
        below = name[len(self.name) + 1 :]
        if self.is_foreign:
            return below.encode("ascii")
        return bytes.fromhex(below.rpartition("/")[2].removesuffix(".kvt"))

    def unpack(self, packed: bytes) -> str:
        """Return the whole name of a block."""
        if self.is_foreign:
            return f"{self.name}/{packed.decode('ascii')}"
        key = packed.hex()
        return f"{self.blocks}/{key[:3]}/{key}.kvt"


def key_of(below: str) -> bytes | None:
    """Return the key in the name of a segment below its tree; None for any other name."""
    found = _SEGMENT.fullmatch(below)
    if found is None:
        return None
    digits = found[2]
    if len(digits) % 2 or not 2 * KEY_BYTES_MIN <= len(digits) <= 2 * KEY_BYTES_MAX:
        return None
    return bytes.fromhex(digits)


def foreign_block_of(name: str) -> tuple[bytes, int]:
    """Return hash and group of another system's block, given its whole name.

    Raises ValueError if the name is not that of a block.
    """
    found = _FOREIGN_BLOCK.fullmatch(name.partition("/")[2])
    if found is None:
        raise ValueError(f"{name!r} is not the name of a block")
    digits = found[2]
    return bytes.fromhex(digits.zfill(len(digits) + len(digits) % 2)), int(found[1])


def shard_of(key: bytes) -> str:
    """Return the shard of a segment's key."""
    return SHARDS[key[0] >> 4]


def tree_at(top: str) -> StoreTree | None:
    """Return the tree with the name `top` at the top of a store; None for any other name."""
    if _OWN_TOP.fullmatch(top):
        return StoreTree(top, is_foreign=False)
    if _FOREIGN_TOP.fullmatch(top):
        return StoreTree(top, is_foreign=True)
    return None


def is_inside_a_tree(top: str) -> bool:
    """Return True if `top` belongs at the top of a tree, so that PATH is one folder too deep."""
    return top in (MANIFEST_NAME, "blocks") or _FOREIGN_FOLDER.fullmatch(top) is not None


def kind_outside(name: str) -> FileTreatment:
    """Return the kind of a file outside of all trees; files in unknown folders are unknown."""
    top, _, below = name.partition("/")
    if below and top != LEASES:
        return FileTreatment.UNKNOWN
    if name.startswith(_NOTES):
        return FileTreatment.KEPT
    if is_temporary(name.rpartition("/")[2]):
        return FileTreatment.TEMPORARY
    return FileTreatment.KEPT if below else FileTreatment.UNKNOWN


def _is_own(below: str) -> bool:
    return below == MANIFEST_NAME or _OWN_FILES.fullmatch(below) is not None
