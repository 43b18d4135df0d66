"""What a name in a store stands for: kvtier's own layout, and those of others in their words.

Why: an evictor deletes, so it has to know what it looks at. Two layouts are known by the names
of their folders: kvtier's `<model>-<16 hex digits>` (docs/reference/format.md), and
`<model>_<12 hex digits>[_r<rank>]` of vLLM's `fs` tier and llm-d's file system backend.

Invariants: what is not recognised is UNKNOWN, never a block; the sixteen shards of a tree, by
the first hex digit of the block, and what lies outside of them are the whole tree, once.
"""

import enum
import re
from typing import Final, NamedTuple

from kvtier.tiers.files import MANIFEST_NAME
from kvtier.tiers.shared.format import KEY_BYTES_MAX, KEY_BYTES_MIN
from kvtier.tiers.shared.store import is_temporary

SHARDS: Final = tuple("0123456789abcdef")
LEASES: Final = "leases"
"""Folder of everything that evictors write for each other."""

_NOTES = ".kvtier-"
"""How the names begin that other commands give their notes at the top of a store."""
_OWN_TOP = re.compile(r"(?P<model>[A-Za-z0-9_][A-Za-z0-9._-]*)-[0-9a-f]{16}")
_FOREIGN_TOP = re.compile(r"(?P<model>[A-Za-z0-9._-]+)_[0-9a-f]{12}(_r\d+)?")
_SEGMENT = re.compile(r"blocks/([0-9a-f]{3})/(\1[0-9a-f]*)\.kvt")
_OWN_FILES = re.compile(
    r"access/[^/]+\.log|access/summary-[0-9a-f]\.\d{10}\.bin|quarantine/[^/]+\.kvt"
)
_FOREIGN_FOLDER = re.compile(r"[0-9a-f]{3}")
_FOREIGN_BLOCK = re.compile(r"[0-9a-f]{3}/[0-9a-f]{2}_g(\d{1,9})/([0-9a-f]+)\.bin")
_FOREIGN_TEMPORARY = re.compile(r"(.+\.bin|\.o_direct_probe).*\.tmp[^/]*")


class FileKind(enum.Enum):
    """What a file is to an evictor."""

    BLOCK = "block"
    """May be evicted: it comes back by computing it again."""
    TEMPORARY = "temporary"
    """On its way, or left by a dead writer."""
    KEPT = "kept"
    """Of the layout, and nobody's to evict: manifests, journals, quarantine."""
    UNKNOWN = "unknown"


class StoreTree(NamedTuple):
    """A folder at the top of a store, in a layout that is known."""

    name: str
    is_foreign: bool

    @property
    def model(self) -> str:
        """What the folder's name tells of the model: readable, cut short, not unique."""
        found = (
            _FOREIGN_TOP.fullmatch(self.name) if self.is_foreign else _OWN_TOP.fullmatch(self.name)
        )
        return found["model"] if found else self.name

    @property
    def blocks(self) -> str:
        """The folder whose names begin with the first hex digit of a block."""
        return self.name if self.is_foreign else f"{self.name}/blocks"

    def shard(self, shard: str) -> str:
        """What the names of a shard begin with."""
        return f"{self.blocks}/{shard}"

    def kind(self, name: str) -> FileKind:
        """Of a file in this tree, by its name alone."""
        below = name[len(self.name) + 1 :]
        if (_FOREIGN_BLOCK.fullmatch(below)) if self.is_foreign else key_of(below):
            return FileKind.BLOCK
        last = below.rpartition("/")[2]
        if is_temporary(last) or (self.is_foreign and _FOREIGN_TEMPORARY.fullmatch(last)):
            return FileKind.TEMPORARY
        kept = below == "config.json" if self.is_foreign else _is_own(below)
        return FileKind.KEPT if kept else FileKind.UNKNOWN

    def pack(self, name: str) -> bytes:
        """The shortest bytes that `unpack` makes the name of a block from."""
        below = name[len(self.name) + 1 :]
        if self.is_foreign:
            return below.encode("ascii")
        return bytes.fromhex(below.rpartition("/")[2].removesuffix(".kvt"))

    def unpack(self, packed: bytes) -> str:
        """The whole name of a block."""
        if self.is_foreign:
            return f"{self.name}/{packed.decode('ascii')}"
        key = packed.hex()
        return f"{self.blocks}/{key[:3]}/{key}.kvt"


def key_of(below: str) -> bytes | None:
    """The key that names a segment, given its name below the tree; None for any other name."""
    found = _SEGMENT.fullmatch(below)
    if found is None:
        return None
    digits = found[2]
    if len(digits) % 2 or not 2 * KEY_BYTES_MIN <= len(digits) <= 2 * KEY_BYTES_MAX:
        return None
    return bytes.fromhex(digits)


def foreign_block_of(name: str) -> tuple[bytes, int]:
    """Hash and group of another system's block, given its whole name. ValueError: it is none."""
    found = _FOREIGN_BLOCK.fullmatch(name.partition("/")[2])
    if found is None:
        raise ValueError(f"{name!r} names no block")
    digits = found[2]
    return bytes.fromhex(digits.zfill(len(digits) + len(digits) % 2)), int(found[1])


def shard_of(key: bytes) -> str:
    """Of a segment's key."""
    return SHARDS[key[0] >> 4]


def tree_at(top: str) -> StoreTree | None:
    """The tree that a folder at the top of a store is; None for anything else."""
    if _OWN_TOP.fullmatch(top):
        return StoreTree(top, is_foreign=False)
    if _FOREIGN_TOP.fullmatch(top):
        return StoreTree(top, is_foreign=True)
    return None


def is_inside_a_tree(top: str) -> bool:
    """Whether it stands at the top of a tree, not of a store: somebody named a folder too deep."""
    return top in (MANIFEST_NAME, "blocks") or _FOREIGN_FOLDER.fullmatch(top) is not None


def kind_outside(name: str) -> FileKind:
    """Of a file that is in no tree: what is in a stranger's folder is the stranger's."""
    top, _, below = name.partition("/")
    if below and top != LEASES:
        return FileKind.UNKNOWN
    if name.startswith(_NOTES):
        return FileKind.KEPT
    if is_temporary(name.rpartition("/")[2]):
        return FileKind.TEMPORARY
    return FileKind.KEPT if below else FileKind.UNKNOWN


def _is_own(below: str) -> bool:
    return below == MANIFEST_NAME or _OWN_FILES.fullmatch(below) is not None
