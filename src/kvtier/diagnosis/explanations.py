"""Why a field keeps two key spaces apart, and what to change so that it does not.

Why it exists: a difference that nobody can explain looks like a broken cache. Invariant: every
field of `KeySpace` has its explanation in EXPLANATIONS; a new field without one fails a test.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final, NamedTuple

from kvtier.blocks.key import KeySpace

UNKNOWN: Final = "unknown"
"""What an engine writes where it could not find out."""
NO_WEIGHTS: Final = "dummy"
_RANDOM: Final = "random"
_DIRECT: Final = "direct"


class Verdict(Enum):
    """What can be done about a difference."""

    CHANGE = "change"
    """Engines that are started otherwise share."""
    NEVER = "never"
    """The bytes are others: whoever wants to share has to run the same."""
    FOLLOWS = "follows"
    """Nothing by itself: it is equal as soon as another field is."""


class Told(NamedTuple):
    """An explanation in plain words."""

    verdict: Verdict
    why: str
    change: str


def explain(field: str, one: KeySpace, other: KeySpace) -> Told:
    """Why `field`, which differs, keeps the two apart. KeyError where there is no such field."""
    return EXPLANATIONS[field](one, other)


def remarks(space: KeySpace) -> list[str]:
    """What is odd about one key space, whatever it is compared with; each with the fix."""
    found = []
    if space.hash_seed.startswith(_RANDOM):
        found.append(
            "hash_seed: the engine drew a random seed, so that nobody else ever asks for these "
            f"blocks, not even the same engine after a restart. {_SEED_FIX}"
        )
    named = {
        "hash_algorithm": [space.hash_algorithm],
        "layout": space.layout.split(),
        "weights": space.weights.split(),
    }
    lacking = [field for field, words in named.items() if UNKNOWN in words]
    if lacking:
        found.append(f"{', '.join(lacking)}: {_UNKNOWN_WHY} {_UNKNOWN_FIX}")
    return found


def checkpoint(space: KeySpace) -> str | None:
    """The digest of its weight files; None where there are none or they were not found."""
    digest = space.weights.split(" ")[0]
    return None if digest in (UNKNOWN, NO_WEIGHTS, "") else digest


_SEED_FIX = (
    "Set PYTHONHASHSEED to the same value on all replicas, or use sha256 "
    "(--prefix-caching-hash-algo sha256), which needs no seed."
)
_UNKNOWN_WHY = (
    "the engine could not find out its own configuration when it started, and what is unknown "
    "is not taken to be equal."
)
_UNKNOWN_FIX = (
    "Look for the warning of kvtier in that engine's log; start it with `kvtier serve` or with "
    "vLLM's own server, of a supported version, and with the model's files on this host."
)


def _unknown() -> Told:
    return Told(Verdict.CHANGE, f"On one side {_UNKNOWN_WHY}", _UNKNOWN_FIX)


def _differ(one: KeySpace, other: KeySpace, *fields: str) -> list[str]:
    """Which of `fields` differ."""
    return [field for field in fields if getattr(one, field) != getattr(other, field)]


def _follows(causes: list[str], why: str) -> Told:
    return Told(Verdict.FOLLOWS, why, f"Nothing by itself: it follows from {_and(causes)}.")


def _and(words: list[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def _engine(one: KeySpace, other: KeySpace) -> Told:
    del one, other
    return Told(
        Verdict.CHANGE,
        "Two versions of an engine may place a block's bytes differently, or compute them with "
        "other kernels.",
        "Run one version on all replicas. During an upgrade each version fills its own key "
        "space; `kvtier evict` ages the old one out.",
    )


def _model(one: KeySpace, other: KeySpace) -> Told:
    if checkpoint(one) is not None and checkpoint(one) == checkpoint(other):
        return Told(
            Verdict.CHANGE,
            "The weights are the same, but the engines were given different names or paths for "
            "the model, and names are compared as they are given.",
            "Start every engine with the same name: the hub's name, or the same path, mounted "
            "at the same place in every container.",
        )
    return Told(
        Verdict.NEVER,
        "They are different models: nothing of one means anything to the other.",
        "Nothing, unless one of them was meant to run the other's model.",
    )


def _revision(one: KeySpace, other: KeySpace) -> Told:
    if "unresolved" in (one.revision, other.revision):
        return Told(
            Verdict.CHANGE,
            "One engine did not find the model's files in its hub cache, so that its revision is "
            "only a name.",
            "Let both find the files: the same HF_HOME or --download-dir, filled before the "
            "engine starts; then the commit is known.",
        )
    if checkpoint(one) is not None and checkpoint(one) == checkpoint(other):
        return Told(
            Verdict.CHANGE,
            "The weights are the same, but the engines call their revision differently.",
            "Start every engine with the same --revision, or with the same folder.",
        )
    return Told(
        Verdict.NEVER,
        "Another revision of a model is another checkpoint: its blocks are other numbers.",
        "Start both with the same --revision.",
    )


def _weights(one: KeySpace, other: KeySpace) -> Told:
    (files, _, settings), (other_files, _, other_settings) = (
        space.weights.partition(" ") for space in (one, other)
    )
    if UNKNOWN in (files, settings, other_files, other_settings):
        return _unknown()
    if files != other_files:
        dummy = NO_WEIGHTS in (files, other_files)
        return Told(
            Verdict.NEVER,
            "One engine made its weights up (--load-format dummy)."
            if dummy
            else "The weight files are not the same: another checkpoint, another revision, or a "
            "converted or quantized copy. Its blocks are other numbers.",
            "Serve the same files on both. If they should be the same, compare names, sizes and "
            "config.json of the two folders: the digest covers them all.",
        )
    if causes := _differ(one, other, "dtype"):
        return _follows(causes, "Its second part is a digest of settings that change the bytes.")
    return Told(
        Verdict.CHANGE,
        "The weight files are the same; what differs is a setting of the engine that changes "
        "the bytes, or the model's own configuration.",
        "Compare the two command lines: --dtype, --quantization, --hf-overrides, --load-format, "
        "--model-loader-extra-config, the attention backend, --mamba-cache-dtype, "
        "--mamba-ssm-cache-dtype, --mamba-cache-mode.",
    )


def _dtype(one: KeySpace, other: KeySpace) -> Told:
    return Told(
        Verdict.NEVER,
        f"Blocks of {one.dtype} and of {other.dtype} are other bytes, and converting one into "
        "the other would change answers.",
        "Start both with the same --dtype and --kv-cache-dtype.",
    )


def _layout(one: KeySpace, other: KeySpace) -> Told:
    words, other_words = one.layout.split(), other.layout.split()
    if UNKNOWN in (*words[:1], *other_words[:1]):
        return _unknown()
    if words[:1] != other_words[:1]:
        return Told(
            Verdict.CHANGE,
            f"The numbers of a block stand in another order: {one.layout} against "
            f"{other.layout}. The attention backend chooses it.",
            "Set VLLM_KV_CACHE_LAYOUT to the same value on both, or choose the same attention "
            "backend.",
        )
    if _is_rearranged(one, other):
        return Told(
            Verdict.CHANGE,
            "One engine writes blocks as its devices hold them (direct), the other in an order "
            "that does not depend on how many devices there are (canonical).",
            _CANONICAL_FIX,
        )
    return Told(
        Verdict.CHANGE,
        "Context parallelism (pcp, dcp) divides the tokens of a block between devices.",
        "Start both with the same --prefill-context-parallel-size and "
        "--decode-context-parallel-size.",
    )


_CANONICAL_FIX = (
    'Set "canonical_layout": true in kv_connector_extra_config of both, or take '
    '"canonical_layout": false out, where the model allows it (whole KV heads on each rank); '
    "with true, an engine that cannot says why when it starts."
)


def _block_bytes(one: KeySpace, other: KeySpace) -> Told:
    why = "A block of one takes more bytes than a block of the other."
    causes = _differ(
        one,
        other,
        *("weights", "dtype", "layout", "blocks_per_chunk"),
        *("tokens_per_hash", "groups", "tp_size", "pp_size"),
    ) or _differ(one, other, "world_size")
    if causes:
        return _follows(causes, why)
    return Told(
        Verdict.CHANGE,
        f"{why} Nothing else differs, so that the engines pad or divide their memory differently.",
        "Start both with the same --block-size and the same attention backend.",
    )


def _blocks_per_chunk(one: KeySpace, other: KeySpace) -> Told:
    return Told(
        Verdict.CHANGE,
        f"One stored block stands for {one.blocks_per_chunk} blocks of the engine here and for "
        f"{other.blocks_per_chunk} there, so that they are cut at other tokens.",
        "Give both the same blocks_per_chunk (or block_size) in kv_connector_extra_config.",
    )


def _tokens_per_hash(one: KeySpace, other: KeySpace) -> Told:
    return Told(
        Verdict.CHANGE,
        f"Prompts are hashed every {one.tokens_per_hash} tokens here and every "
        f"{other.tokens_per_hash} there, so that the same prompt has other keys.",
        "Start both with the same --block-size; where neither gives one, with the same attention "
        "backend, which chooses it.",
    )


def _groups(one: KeySpace, other: KeySpace) -> Told:
    shapes, other_shapes = (
        [group.tokens_per_block for group in space.groups] for space in (one, other)
    )
    if len(shapes) != len(other_shapes):
        return Told(
            Verdict.CHANGE,
            f"The engine divides the model's layers into {len(shapes)} groups here and into "
            f"{len(other_shapes)} there (full attention, sliding window, state).",
            "Start both with the same model options; --disable-hybrid-kv-cache-manager and a "
            "draft model (--speculative-config) change the groups.",
        )
    if shapes != other_shapes:
        return Told(
            Verdict.CHANGE,
            f"A block holds {shapes} tokens here and {other_shapes} there.",
            "Start both with the same --block-size.",
        )
    if causes := _differ(one, other, "pp_size"):
        return _follows(causes, "The blocks hold other layers.")
    return Told(
        Verdict.CHANGE,
        "The blocks hold other layers, or the same ones in another order.",
        "Start both with the same model options and the same engine version; a draft model "
        "(--speculative-config) adds layers of its own.",
    )


def _is_rearranged(one: KeySpace, other: KeySpace) -> bool:
    """Whether one is canonical, where all sizes are 1, and the other is not."""
    return one.layout.split()[1:2] != other.layout.split()[1:2]


def _world_size(one: KeySpace, other: KeySpace) -> Told:
    why = f"A block is divided between {one.world_size} workers here and {other.world_size} there."
    if causes := _differ(one, other, "tp_size", "pp_size", "layout"):
        return _follows(causes, why)
    return Told(Verdict.CHANGE, why, "Start both with the same number of workers.")


def _tp_size(one: KeySpace, other: KeySpace) -> Told:
    why = f"Blocks are divided per rank: {one.tp_size} ranks against {other.tp_size}."
    if _is_rearranged(one, other):
        return _follows(["layout"], why)
    same = "Otherwise start both with the same --tensor-parallel-size."
    if _DIRECT in one.layout.split() or _DIRECT in other.layout.split():
        return Told(Verdict.CHANGE, why, f"{_CANONICAL_FIX} {same}")
    return Told(Verdict.CHANGE, why, "Start both with the same --tensor-parallel-size.")


def _pp_size(one: KeySpace, other: KeySpace) -> Told:
    why = f"A block's layers are divided into {one.pp_size} stages here, {other.pp_size} there."
    if _is_rearranged(one, other):
        return _follows(["layout"], why)
    return Told(
        Verdict.CHANGE,
        why,
        "Start both with the same --pipeline-parallel-size.",
    )


def _hash_algorithm(one: KeySpace, other: KeySpace) -> Told:
    if UNKNOWN in (one.hash_algorithm, other.hash_algorithm):
        return _unknown()
    return Told(
        Verdict.CHANGE,
        f"The same prompt has other keys: {one.hash_algorithm} against {other.hash_algorithm}.",
        "Start both with the same --prefix-caching-hash-algo; sha256 is the default and needs "
        "no seed.",
    )


def _hash_seed(one: KeySpace, other: KeySpace) -> Told:
    if any(space.hash_seed.startswith(_RANDOM) for space in (one, other)):
        why = (
            "Block hashes start from a seed, and with xxhash an engine draws a random one for "
            "each process: the same prompt has other keys in each."
        )
    elif causes := _differ(one, other, "hash_algorithm"):
        return _follows(causes, "Each algorithm starts from a seed of its own.")
    else:
        why = "Block hashes start from a seed, so that the same prompt has other keys."
    return Told(
        Verdict.CHANGE,
        why,
        "PYTHONHASHSEED must be set to the same value on all replicas, or on none with sha256 "
        "(--prefix-caching-hash-algo sha256).",
    )


def _isa(one: KeySpace, other: KeySpace) -> Told:
    if one.isa.split(" ")[0] != other.isa.split(" ")[0]:
        why = "Each platform places and rounds the numbers of a block in its own way."
    elif one.isa.startswith("cpu"):
        why = "On CPUs the engine packs blocks for the widest instruction set it finds."
    else:
        why = "Devices of another capability run other kernels, which place and round differently."
    return Told(
        Verdict.NEVER,
        why,
        "Only equal hardware shares: keep the replicas of a store on nodes of one kind "
        "(a node selector, a node pool), or give each kind a store.",
    )


EXPLANATIONS: Final[Mapping[str, Callable[[KeySpace, KeySpace], Told]]] = {
    "engine": _engine,
    "model": _model,
    "revision": _revision,
    "weights": _weights,
    "dtype": _dtype,
    "layout": _layout,
    "block_bytes": _block_bytes,
    "blocks_per_chunk": _blocks_per_chunk,
    "tokens_per_hash": _tokens_per_hash,
    "groups": _groups,
    "world_size": _world_size,
    "tp_size": _tp_size,
    "pp_size": _pp_size,
    "hash_algorithm": _hash_algorithm,
    "hash_seed": _hash_seed,
    "isa": _isa,
}
"""Field of `KeySpace` -> its explanation for two that differ in it."""
