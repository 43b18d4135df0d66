"""Why a field keeps two key spaces apart, and what to change so that it does not.

Why it exists: a difference that nobody can explain looks like a broken cache. Invariant: every
field of `KeySpace` has its explanation in EXPLANATIONS; a new field without one fails a test.
"""

from collections.abc import Callable, Mapping
from typing import Final

from kvtier.blocks.key import KeySpace
from kvtier.diagnosis import shapes
from kvtier.diagnosis.report import Verdict
from kvtier.diagnosis.shapes import (
    UNKNOWN,
    UNKNOWN_FIX,
    UNKNOWN_WHY,
    Explanation,
    differing,
    follows,
    unknown,
)

NO_WEIGHTS: Final = "dummy"
"""In place of a digest: the engine made its weights up."""
_RANDOM: Final = "random"


def explain(field: str, one: KeySpace, other: KeySpace) -> Explanation:
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
        found.append(f"{', '.join(lacking)}: {UNKNOWN_WHY} {UNKNOWN_FIX}")
    return found


def checkpoint(space: KeySpace) -> str | None:
    """The digest of its weight files; None where there are none or they were not found."""
    digest = space.weights.split(" ")[0]
    return None if digest in (UNKNOWN, NO_WEIGHTS, "") else digest


_SEED_FIX = (
    "Set PYTHONHASHSEED to the same value on all replicas, or use sha256 "
    "(--prefix-caching-hash-algo sha256), which needs no seed."
)


def _engine(one: KeySpace, other: KeySpace) -> Explanation:
    del one, other
    return Explanation(
        Verdict.CHANGE,
        "Two versions of an engine may place a block's bytes differently, or compute them with "
        "other kernels.",
        "Run one version on all replicas. During an upgrade each version fills its own key "
        "space; `kvtier evict` ages the old one out.",
    )


def _model(one: KeySpace, other: KeySpace) -> Explanation:
    if checkpoint(one) is not None and checkpoint(one) == checkpoint(other):
        return Explanation(
            Verdict.CHANGE,
            "The weights are the same, but the engines were given different names or paths for "
            "the model, and names are compared as they are given.",
            "Start every engine with the same name: the hub's name, or the same path, mounted "
            "at the same place in every container.",
        )
    return Explanation(
        Verdict.NEVER,
        "They are different models: nothing of one means anything to the other.",
        "Nothing, unless one of them was meant to run the other's model.",
    )


def _revision(one: KeySpace, other: KeySpace) -> Explanation:
    if "unresolved" in (one.revision, other.revision):
        return Explanation(
            Verdict.CHANGE,
            "One engine did not find the model's files in its hub cache, so that its revision is "
            "only a name.",
            "Let both find the files: the same HF_HOME or --download-dir, filled before the "
            "engine starts; then the commit is known.",
        )
    if checkpoint(one) is not None and checkpoint(one) == checkpoint(other):
        return Explanation(
            Verdict.CHANGE,
            "The weights are the same, but the engines call their revision differently.",
            "Start every engine with the same --revision, or with the same folder.",
        )
    return Explanation(
        Verdict.NEVER,
        "Another revision of a model is another checkpoint: its blocks are other numbers.",
        "Start both with the same --revision.",
    )


def _weights(one: KeySpace, other: KeySpace) -> Explanation:
    (files, _, settings), (other_files, _, other_settings) = (
        space.weights.partition(" ") for space in (one, other)
    )
    if UNKNOWN in (files, settings, other_files, other_settings):
        return unknown()
    if files != other_files:
        dummy = NO_WEIGHTS in (files, other_files)
        return Explanation(
            Verdict.NEVER,
            "One engine made its weights up (--load-format dummy)."
            if dummy
            else "The weight files are not the same: another checkpoint, another revision, or a "
            "converted or quantized copy. Its blocks are other numbers.",
            "Serve the same files on both. If they should be the same, compare names, sizes and "
            "config.json of the two folders: the digest covers them all.",
        )
    if causes := differing(one, other, "dtype"):
        return follows(causes, "Its second part is a digest of settings that change the bytes.")
    return Explanation(
        Verdict.CHANGE,
        "The weight files are the same; what differs is a setting of the engine that changes "
        "the bytes, or the model's own configuration.",
        "Compare the two command lines: --dtype, --quantization, --hf-overrides, --load-format, "
        "--model-loader-extra-config, the attention backend, --mamba-cache-dtype, "
        "--mamba-ssm-cache-dtype, --mamba-cache-mode.",
    )


def _dtype(one: KeySpace, other: KeySpace) -> Explanation:
    return Explanation(
        Verdict.NEVER,
        f"Blocks of {one.dtype} and of {other.dtype} are other bytes, and converting one into "
        "the other would change answers.",
        "Start both with the same --dtype and --kv-cache-dtype.",
    )


def _hash_algorithm(one: KeySpace, other: KeySpace) -> Explanation:
    if UNKNOWN in (one.hash_algorithm, other.hash_algorithm):
        return unknown()
    return Explanation(
        Verdict.CHANGE,
        f"The same prompt has other keys: {one.hash_algorithm} against {other.hash_algorithm}.",
        "Start both with the same --prefix-caching-hash-algo; sha256 is the default and needs "
        "no seed.",
    )


def _hash_seed(one: KeySpace, other: KeySpace) -> Explanation:
    if any(space.hash_seed.startswith(_RANDOM) for space in (one, other)):
        why = (
            "Block hashes start from a seed, and with xxhash an engine draws a random one for "
            "each process: the same prompt has other keys in each."
        )
    elif causes := differing(one, other, "hash_algorithm"):
        return follows(causes, "Each algorithm starts from a seed of its own.")
    else:
        why = "Block hashes start from a seed, so that the same prompt has other keys."
    return Explanation(
        Verdict.CHANGE,
        why,
        "PYTHONHASHSEED must be set to the same value on all replicas, or on none with sha256 "
        "(--prefix-caching-hash-algo sha256).",
    )


def _isa(one: KeySpace, other: KeySpace) -> Explanation:
    if one.isa.split(" ")[0] != other.isa.split(" ")[0]:
        why = "Each platform places and rounds the numbers of a block in its own way."
    elif one.isa.startswith("cpu"):
        why = "On CPUs the engine packs blocks for the widest instruction set it finds."
    else:
        why = "Devices of another capability run other kernels, which place and round differently."
    return Explanation(
        Verdict.NEVER,
        why,
        "Only equal hardware shares: keep the replicas of a store on nodes of one kind "
        "(a node selector, a node pool), or give each kind a store.",
    )


EXPLANATIONS: Final[Mapping[str, Callable[[KeySpace, KeySpace], Explanation]]] = {
    "engine": _engine,
    "model": _model,
    "revision": _revision,
    "weights": _weights,
    "dtype": _dtype,
    "layout": shapes.layout,
    "block_bytes": shapes.block_bytes,
    "blocks_per_chunk": shapes.blocks_per_chunk,
    "tokens_per_hash": shapes.tokens_per_hash,
    "groups": shapes.groups,
    "world_size": shapes.world_size,
    "tp_size": shapes.tp_size,
    "pp_size": shapes.pp_size,
    "hash_algorithm": _hash_algorithm,
    "hash_seed": _hash_seed,
    "isa": _isa,
}
"""Field of `KeySpace` -> its explanation for two that differ in it."""
