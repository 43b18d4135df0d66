"""The files of a foreign tree: where they lie, how they are named, how long each must be.

`<base>_r<rank>/<hhh>/<hh>_g<group>/<hash>.bin`, the folders being the first five digits of the
hash. Invariants: a key has one name, and a name that `parse_block_name` takes has one key; no
file is opened that lies under another one.
"""

import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from kvtier.blocks.key import BlockKey
from kvtier.conversion.matching import LLMD, Tree, read_tree
from kvtier.errors import InvalidSettings
from kvtier.inspection.foreign import find_foreign, read_config
from kvtier.inspection.view import Entry, View, printable
from kvtier.tiers.shared.format import KEY_BYTES_MAX

GROUP_BYTES: Final = 4
_FAN_OUT = re.compile(r"[0-9a-f]{3}(?:/[0-9a-f]{2}_g\d+)?")
_BLOCK = re.compile(r"([0-9a-f]{3})/([0-9a-f]{2})_g(0|[1-9]\d{0,8})/((?:[0-9a-f]{2})+)\.bin")
_HASH_DIGITS_MIN = 6


class FoundTree(NamedTuple):
    """A tree in a folder. Its configuration is what the folder is named after."""

    base: str
    tree: Tree

    @property
    def is_by_worker(self) -> bool:
        """Whether each worker has its own file of a block, unpadded; if not, one has all."""
        return self.tree.system == LLMD

    def block_name(self, key: BlockKey, rank: int = 0) -> str:
        """Below the folder that the tree is in."""
        digits, group = key[:-GROUP_BYTES].hex(), int.from_bytes(key[-GROUP_BYTES:])
        return f"{self.base}_r{rank}/{digits[:3]}/{digits[3:5]}_g{group}/{digits}.bin"

    def walk(
        self, view: View, refused: Callable[[str, OSError], None]
    ) -> Iterator[tuple[Entry, BlockKey | None]]:
        """All that lies below the first rank, in the order of names; None: it is no block."""
        top = f"{self.base}_r0"
        start = len(top) + 1

        def looks_into(name: str) -> bool:
            return _FAN_OUT.fullmatch(name[start:]) is not None

        for entry in view.walk(top, looks_into, refused):
            yield entry, parse_block_name(entry.name[start:])


def parse_block_name(name: str) -> BlockKey | None:
    """The key in a name below a rank's folder; None where no block is named so."""
    found = _BLOCK.fullmatch(name)
    if found is None:
        return None
    first, second, group, digits = found.groups()
    if len(digits) < _HASH_DIGITS_MIN or digits[:5] != first + second:
        return None
    key = BlockKey(bytes.fromhex(digits) + int(group).to_bytes(GROUP_BYTES))
    return key if len(key) <= KEY_BYTES_MAX else None


def share_done(name: str) -> float:
    """How far a walk is: hashes are spread evenly over the folders."""
    parts = name.split("/")
    return int(parts[1], 16) / 4096 if len(parts) > 1 and _FAN_OUT.fullmatch(parts[1]) else 0.0


def choose_tree(view: View, wanted: str | None) -> FoundTree:
    """The tree `wanted`, or the only one. Raises InvalidSettings with the choice, and OSError."""
    bases = list(find_foreign(view))
    known = ", ".join(map(printable, bases)) or "none"
    if wanted is not None:
        if wanted not in bases:
            raise InvalidSettings(f"--tree: no tree {wanted} in {view.place}; there are: {known}")
        return _read(view, wanted)
    if not bases:
        raise InvalidSettings(
            f"{view.place} holds no tree of vLLM's fs tier or of llm-d's; name its root_dir, "
            "after an engine with that tier has run there once"
        )
    if len(bases) > 1:
        raise InvalidSettings(f"--tree: {view.place} holds several trees, name one: {known}")
    return _read(view, bases[0])


def _read(view: View, base: str) -> FoundTree:
    fields, mistake = read_config(view, base)
    if fields is None or mistake is not None:
        raise InvalidSettings(
            f"{printable(base)}: {mistake}; nobody can tell what the tree's bytes are"
        )
    return FoundTree(base, read_tree(fields))
