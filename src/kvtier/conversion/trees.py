"""The files of a foreign tree: where they lie, how they are named, how long each must be.

`<base>_r<rank>/<hhh>/<hh>_g<group>/<hash>.bin`, the folders being the first five digits of the
hash. Invariants: a key has one name, and a name that `parse_block_name` takes has one key; no
file is opened that lies under another one.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from kvtier.blocks.key import BlockKey, KeySpace
from kvtier.errors import InvalidSettings
from kvtier.inspection.foreign import find_foreign, read_config
from kvtier.inspection.view import Entry, View, printable
from kvtier.tiers.shared.format import KEY_BYTES_MAX

VLLM: Final = "vLLM fs"


LLMD: Final = "llm-d FS"


_SNAPSHOT = re.compile(r".*/models--(?P<model>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})/?")


_LAYOUT = re.compile(r"\S+ (canonical|direct pcp(?P<pcp>\d+) dcp(?P<dcp>\d+))")


_NEVER_TOLD = ("engine", "weights", "layout", "hash_algorithm", "hash_seed", "isa")


class TreeGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A KV-cache group as the tree has it."""

    tokens_per_block: int
    layer_names: tuple[str, ...]


class TreeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What config.json says, in vLLM's words."""

    model_name: str
    tokens_per_hash: int
    blocks_per_file: int
    tp_size: int
    pp_size: int
    pcp_size: int
    dcp_size: int
    dtype: str
    kv_cache_groups: tuple[TreeGroup, ...]
    inference_engine: str
    parallel_agnostic: bool | None = None
    replicated_layout: bool = False
    canonical_format: str | None = None


class TreeFormat(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration and whose it is."""

    system: str
    config: TreeConfig

    @property
    def tells_workers(self) -> bool:
        """Whether the sizes are those of the writers.

        vLLM writes 1 for all where it holds the bytes for the same on any number of workers.
        """
        return self.system == LLMD or self.config.parallel_agnostic is False


_LLMD_NAMES: Final = {
    "hash_block_size": "tokens_per_hash",
    "gpu_blocks_per_file": "blocks_per_file",
}


def read_tree(fields: dict[str, Any]) -> TreeFormat:
    """From the fields of config.json. Raises InvalidSettings naming the one that does not fit.

    A field that is not known is refused: it may change what the bytes are.
    """
    system = LLMD if "gpu_blocks_per_file" in fields else VLLM
    if system == LLMD:
        fields = {_LLMD_NAMES.get(name, name): value for name, value in fields.items()}
        groups = fields.get("kv_cache_groups")
        if isinstance(groups, list):
            fields["kv_cache_groups"] = [_renamed(group) for group in groups]
    try:
        return TreeFormat(system=system, config=msgspec.convert(fields, TreeConfig))
    except msgspec.ValidationError as error:
        raise InvalidSettings(
            f"config.json is not one that this kvtier knows of {system}: {error}; "
            "its bytes cannot be told, convert nothing"
        ) from error


def _renamed(group: Any) -> Any:
    if not isinstance(group, dict):
        return group
    return {{"block_size": "tokens_per_block"}.get(k, k): v for k, v in group.items()}


def layers_digest(names: Sequence[str]) -> str:
    """As `GroupShape.layers` has it."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def mismatches(tree: TreeFormat, space: KeySpace) -> list[str]:
    """`field: why` for all that keeps the tree's blocks from being those of the key space."""
    return [*_bytes_mismatches(tree, space), *_identity_mismatches(tree, space)]


def unproven(tree: TreeFormat) -> list[str]:
    """Fields of a key space of which the tree tells nothing."""
    fields = list(_NEVER_TOLD)
    if _SNAPSHOT.fullmatch(tree.config.model_name) is None:
        fields.append("revision")
    if not tree.tells_workers:
        fields += ["world_size", "tp_size", "pp_size"]
    return sorted(fields)


def _bytes_mismatches(tree: TreeFormat, space: KeySpace) -> list[str]:
    """What makes the bytes another arrangement."""
    config = tree.config
    found = []
    if config.replicated_layout:
        found.append("replicated_layout: one copy for all workers, a kvtier block has one of each")
    if config.canonical_format is not None:
        found.append(
            f"canonical_format: {config.canonical_format!r}, kvtier's blocks are as the device's"
        )
    if len(config.kv_cache_groups) != 1 or len(space.groups) != 1:
        found.append(
            f"kv_cache_groups: {len(config.kv_cache_groups)} in the tree and {len(space.groups)} "
            "in the key space; with several, pages may be padded, and neither side tells how"
        )
    if (config.blocks_per_file, space.blocks_per_chunk) != (1, 1):
        found.append(
            f"blocks_per_file: {config.blocks_per_file} in the tree and {space.blocks_per_chunk} "
            "(blocks_per_chunk) in the key space; only one block a file lies alike in both"
        )
    if space.world_size < 1 or space.block_bytes % space.world_size:
        found.append(f"world_size: {space.block_bytes} bytes are no {space.world_size} slices")
    return found


def _identity_mismatches(tree: TreeFormat, space: KeySpace) -> list[str]:
    config = tree.config
    layout = _LAYOUT.fullmatch(space.layout)
    found = []
    if layout is None:
        found.append(f"layout: {space.layout!r} is none that a tree of files can have")
    if config.inference_engine != "vllm" or not space.engine.startswith("vllm "):
        found.append(f"inference_engine: {config.inference_engine!r} != {space.engine!r}")
    if not _same_model(config.model_name, space):
        found.append(
            f"model_name: {config.model_name!r} != {space.model!r} revision {space.revision!r}"
        )
    pairs: list[tuple[str, object, object]] = [
        ("dtype", config.dtype.removeprefix("torch."), space.dtype.removeprefix("torch.")),
        ("tokens_per_hash", config.tokens_per_hash, space.tokens_per_hash),
    ]
    for number, (ours, theirs) in enumerate(
        zip(config.kv_cache_groups, space.groups, strict=False)
    ):
        name = f"kv_cache_groups[{number}]"
        pairs += [
            (f"{name}.tokens_per_block", ours.tokens_per_block, theirs.tokens_per_block),
            (f"{name}.layer_names (digest)", layers_digest(ours.layer_names), theirs.layers),
        ]
    if layout is not None:
        pairs += [
            ("pcp_size", config.pcp_size, int(layout["pcp"] or 1)),
            ("dcp_size", config.dcp_size, int(layout["dcp"] or 1)),
        ]
    if tree.tells_workers:
        workers = config.tp_size * config.pp_size * config.pcp_size
        pairs += [
            ("tp_size", config.tp_size, space.tp_size),
            ("pp_size", config.pp_size, space.pp_size),
            ("tp_size * pp_size * pcp_size", workers, space.world_size),
        ]
    found += [f"{name}: {ours!r} != {theirs!r}" for name, ours, theirs in pairs if ours != theirs]
    return found


def _same_model(name: str, space: KeySpace) -> bool:
    """By name, or by the place in a hub's cache, which tells the revision as well."""
    snapshot = _SNAPSHOT.fullmatch(name)
    if snapshot is None:
        return name == space.model
    model = snapshot["model"].replace("--", "/")
    return (model, snapshot["revision"]) == (space.model, space.revision)


GROUP_BYTES: Final = 4


_FAN_OUT = re.compile(r"[0-9a-f]{3}(?:/[0-9a-f]{2}_g\d+)?")


_BLOCK = re.compile(r"([0-9a-f]{3})/([0-9a-f]{2})_g(0|[1-9]\d{0,8})/((?:[0-9a-f]{2})+)\.bin")


_HASH_DIGITS_MIN = 6


class FoundTree(NamedTuple):
    """A tree in a folder. Its configuration is what the folder is named after."""

    base: str
    tree: TreeFormat

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
