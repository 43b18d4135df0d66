"""Trees of other systems: their files, their configuration, and which key space they belong to.

A block is in `<base>_r<rank>/<hhh>/<hh>_g<group>/<hash>.bin`; the folders are the first five digits
of the hash.

A tree records less than a key space does, and converted blocks are served as if their engine had
computed them. So every rule that cannot be checked against both sides is either a mismatch, which
refuses the conversion, or a field in `unproven`, for which the user vouches by naming the key
space.

The rules follow from the layouts. vLLM's `fs` tier keeps one file per chunk: the slots of all
workers in the order of their ranks, padded with zeros to a multiple of 4096 bytes; a worker's slot
is stored tensor by tensor. llm-d keeps one file per chunk and worker, block by block. A kvtier slot
is stored rank by rank, then block by block, then layer by layer. All three agree if a chunk is one
block of the model's only group, because then nothing is padded or interleaved differently. A
canonical kvtier slot has the heads of all ranks layer by layer, like that of one rank, so it agrees
with trees of one worker.

Invariants: each key has one name, and each name that `parse_block_name` accepts has one key. A
file is never opened under a name that differs from its key.
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
_NEVER_RECORDED = ("engine", "weights", "layout", "hash_algorithm", "hash_seed", "isa")
_LLMD_NAMES: Final = {
    "hash_block_size": "tokens_per_hash",
    "gpu_blocks_per_file": "blocks_per_file",
}
GROUP_BYTES: Final = 4
_FAN_OUT = re.compile(r"[0-9a-f]{3}(?:/[0-9a-f]{2}_g\d+)?")
_BLOCK = re.compile(r"([0-9a-f]{3})/([0-9a-f]{2})_g(0|[1-9]\d{0,8})/((?:[0-9a-f]{2})+)\.bin")
_HASH_DIGITS_MIN = 6


class TreeGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A KV-cache group in a tree's configuration."""

    tokens_per_block: int
    layer_names: tuple[str, ...]


class TreeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tree's config.json, with vLLM's field names."""

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
    """The format of a tree: which system wrote it, and its configuration."""

    system: str
    config: TreeConfig

    @property
    def records_workers(self) -> bool:
        """Whether the sizes are those of the writers.

        vLLM records 1 for all sizes if it expects equal bytes for any number of workers.
        """
        return self.system == LLMD or self.config.parallel_agnostic is False


def read_tree(fields: dict[str, Any]) -> TreeFormat:
    """Parse the fields of config.json. Raises InvalidSettings that names an invalid field.

    Unknown fields are refused, because they may change the bytes of a block.
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
            f"config.json is not a configuration of {system} that this kvtier supports: {error}"
        ) from error


def _renamed(group: Any) -> Any:
    if not isinstance(group, dict):
        return group
    return {{"block_size": "tokens_per_block"}.get(k, k): v for k, v in group.items()}


def layers_digest(names: Sequence[str]) -> str:
    """Return the digest of layer names, as in `GroupShape.layers`."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def mismatches(tree: TreeFormat, space: KeySpace) -> list[str]:
    """Return `field: reason` for each difference between the tree and the key space."""
    return [*_bytes_mismatches(tree, space), *_identity_mismatches(tree, space)]


def unproven(tree: TreeFormat) -> list[str]:
    """Return the fields of a key space that the tree does not record."""
    fields = list(_NEVER_RECORDED)
    if _SNAPSHOT.fullmatch(tree.config.model_name) is None:
        fields.append("revision")
    if not tree.records_workers:
        fields += ["world_size", "tp_size", "pp_size"]
    return sorted(fields)


def _bytes_mismatches(tree: TreeFormat, space: KeySpace) -> list[str]:
    """Return the differences that arrange the bytes of a block differently."""
    config = tree.config
    found = []
    if config.replicated_layout:
        found.append("replicated_layout: one copy for all workers, but a kvtier block has one each")
    if config.canonical_format is not None:
        found.append(
            f"canonical_format: {config.canonical_format!r}, but kvtier stores the device's layout"
        )
    if len(config.kv_cache_groups) != 1 or len(space.groups) != 1:
        found.append(
            f"kv_cache_groups: {len(config.kv_cache_groups)} in the tree and {len(space.groups)} "
            "in the key space; with several, pages may be padded, and neither side records how"
        )
    if (config.blocks_per_file, space.blocks_per_chunk) != (1, 1):
        found.append(
            f"blocks_per_file: {config.blocks_per_file} in the tree and {space.blocks_per_chunk} "
            "(blocks_per_chunk) in the key space; both arrange only one block per file equally"
        )
    if space.world_size < 1 or space.block_bytes % space.world_size:
        found.append(
            f"world_size: {space.block_bytes} bytes cannot be divided by {space.world_size} workers"
        )
    return found


def _identity_mismatches(tree: TreeFormat, space: KeySpace) -> list[str]:
    config = tree.config
    layout = _LAYOUT.fullmatch(space.layout)
    found = []
    if layout is None:
        found.append(f"layout: a tree cannot have {space.layout!r}")
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
    if tree.records_workers:
        workers = config.tp_size * config.pp_size * config.pcp_size
        pairs += [
            ("tp_size", config.tp_size, space.tp_size),
            ("pp_size", config.pp_size, space.pp_size),
            ("tp_size * pp_size * pcp_size", workers, space.world_size),
        ]
    found += [f"{name}: {ours!r} != {theirs!r}" for name, ours, theirs in pairs if ours != theirs]
    return found


def _same_model(name: str, space: KeySpace) -> bool:
    """Compare by name, or by a path in a hub's cache, which includes the revision."""
    snapshot = _SNAPSHOT.fullmatch(name)
    if snapshot is None:
        return name == space.model
    model = snapshot["model"].replace("--", "/")
    return (model, snapshot["revision"]) == (space.model, space.revision)


class FoundTree(NamedTuple):
    """A tree whose configuration matches the digest in its folder's name."""

    base: str
    tree: TreeFormat

    @property
    def is_by_worker(self) -> bool:
        """Whether each worker has its own, unpadded file of a block instead of one file for all."""
        return self.tree.system == LLMD

    def block_name(self, key: BlockKey, rank: int = 0) -> str:
        """Return the name of a block's file, relative to the view's root."""
        digits, group = key[:-GROUP_BYTES].hex(), int.from_bytes(key[-GROUP_BYTES:])
        return f"{self.base}_r{rank}/{digits[:3]}/{digits[3:5]}_g{group}/{digits}.bin"

    def walk(
        self, view: View, on_unreadable: Callable[[str, OSError], None]
    ) -> Iterator[tuple[Entry, BlockKey | None]]:
        """Yield everything below the first rank in the order of names, with the block's key.

        The key is None for a name that is not a block's.
        """
        top = f"{self.base}_r0"
        start = len(top) + 1

        def looks_into(name: str) -> bool:
            return _FAN_OUT.fullmatch(name[start:]) is not None

        for entry in view.walk(top, looks_into, on_unreadable):
            yield entry, parse_block_name(entry.name[start:])


def parse_block_name(name: str) -> BlockKey | None:
    """Return the key in a name below a rank's folder; None if it is not a block's name."""
    found = _BLOCK.fullmatch(name)
    if found is None:
        return None
    first, second, group, digits = found.groups()
    if len(digits) < _HASH_DIGITS_MIN or digits[:5] != first + second:
        return None
    key = BlockKey(bytes.fromhex(digits) + int(group).to_bytes(GROUP_BYTES))
    return key if len(key) <= KEY_BYTES_MAX else None


def share_done(name: str) -> float:
    """Estimate the share walked, 0 to 1; hashes are spread evenly over the folders."""
    parts = name.split("/")
    return int(parts[1], 16) / 4096 if len(parts) > 1 and _FAN_OUT.fullmatch(parts[1]) else 0.0


def choose_tree(view: View, wanted: str | None) -> FoundTree:
    """Return the tree `wanted`, or the only one.

    Raises InvalidSettings that lists the trees, and OSError.
    """
    bases = list(find_foreign(view))
    known = ", ".join(map(printable, bases)) or "none"
    if wanted is not None:
        if wanted not in bases:
            raise InvalidSettings(f"--tree: no tree {wanted} in {view.place}; there are: {known}")
        return _read(view, wanted)
    if not bases:
        raise InvalidSettings(
            f"{view.place} holds no tree of vLLM's fs tier or of llm-d; name the root_dir of an "
            "engine that has already used such a tier there"
        )
    if len(bases) > 1:
        raise InvalidSettings(f"--tree: {view.place} holds several trees; name one: {known}")
    return _read(view, bases[0])


def _read(view: View, base: str) -> FoundTree:
    fields, mistake = read_config(view, base)
    if fields is None or mistake is not None:
        raise InvalidSettings(f"{printable(base)}: {mistake}; the format of its blocks is unknown")
    return FoundTree(base, read_tree(fields))
