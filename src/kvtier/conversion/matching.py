"""Whether a tree of another system holds the blocks of a key space, field by field.

Why refuse so much: a foreign tree says less than a key space does, and what is converted is
served as if its engine had computed it. Each rule that cannot be checked against both sides is
either a refusal here, or a field in `unproven`, for which the person who names the key space
vouches.

Facts the rules rest on. vLLM's `fs` tier keeps one file a chunk: the slots of all workers in the
order of their ranks, then zeros up to 4096 bytes; a worker's slot is tensor by tensor. llm-d
keeps one file a chunk and worker, block by block. A kvtier slot is rank by rank, then block by
block, then layer by layer. So the three agree where a chunk is one block of the one group that
the model has, because then nothing is padded or interleaved differently. A canonical kvtier slot
holds the heads of all ranks layer by layer, as one rank's does: it agrees with trees of one worker.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from kvtier.blocks.key import KeySpace
from kvtier.errors import InvalidSettings

VLLM: Final = "vLLM fs"
LLMD: Final = "llm-d FS"

_SNAPSHOT = re.compile(r".*/models--(?P<model>[^/]+)/snapshots/(?P<revision>[0-9a-f]{40})/?")
_LAYOUT = re.compile(r"\S+ (canonical|direct pcp(?P<pcp>\d+) dcp(?P<dcp>\d+))")
_NEVER_TOLD = ("engine", "weights", "layout", "hash_algorithm", "hash_seed", "isa")


class Group(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
    kv_cache_groups: tuple[Group, ...]
    inference_engine: str
    parallel_agnostic: bool | None = None
    replicated_layout: bool = False
    canonical_format: str | None = None


class Tree(msgspec.Struct, frozen=True, kw_only=True):
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


def read_tree(fields: dict[str, Any]) -> Tree:
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
        return Tree(system=system, config=msgspec.convert(fields, TreeConfig))
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


def mismatches(tree: Tree, space: KeySpace) -> list[str]:
    """`field: why` for all that keeps the tree's blocks from being those of the key space."""
    return [*_bytes_mismatches(tree, space), *_identity_mismatches(tree, space)]


def unproven(tree: Tree) -> list[str]:
    """Fields of a key space of which the tree tells nothing."""
    fields = list(_NEVER_TOLD)
    if _SNAPSHOT.fullmatch(tree.config.model_name) is None:
        fields.append("revision")
    if not tree.tells_workers:
        fields += ["world_size", "tp_size", "pp_size"]
    return sorted(fields)


def _bytes_mismatches(tree: Tree, space: KeySpace) -> list[str]:
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


def _identity_mismatches(tree: Tree, space: KeySpace) -> list[str]:
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
