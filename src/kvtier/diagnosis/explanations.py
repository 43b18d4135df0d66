"""Explains why a field keeps two key spaces apart, and what to change.

Without an explanation, key spaces that do not match look like a broken cache. Invariant: every
field of `KeySpace` has an explanation in EXPLANATIONS; a test fails for a new field without one.
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
"""Recorded instead of a digest by an engine with random weights (--load-format dummy)."""
_RANDOM: Final = "random"


def explain(field: str, one: KeySpace, other: KeySpace) -> Explanation:
    """Explain the difference in `field`. Raises KeyError for an unknown field."""
    return EXPLANATIONS[field](one, other)


def remarks(space: KeySpace) -> list[str]:
    """Return warnings about a single key space, each with the fix."""
    found = []
    if space.hash_seed.startswith(_RANDOM):
        found.append(
            "hash_seed: the engine drew a random seed, so these blocks are never requested by any "
            f"other engine, or by the same one after a restart. {_SEED_FIX}"
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
    """Return the digest of the weight files; None if the engine had or found none."""
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
        "Two versions of an engine may arrange a block's bytes differently, or compute them with "
        "other kernels.",
        "Run one version on all replicas. During an upgrade each version fills its own key "
        "space; `kvtier evict` removes the old one over time.",
    )


def _model(one: KeySpace, other: KeySpace) -> Explanation:
    if checkpoint(one) is not None and checkpoint(one) == checkpoint(other):
        return Explanation(
            Verdict.CHANGE,
            "The weights are the same, but the engines were started with different names or paths "
            "of the model, and names are compared literally.",
            "Start every engine with the same name: the hub's name, or the same path, mounted "
            "at the same place in every container.",
        )
    return Explanation(
        Verdict.NEVER,
        "They are different models, whose blocks have nothing in common.",
        "Nothing, unless one of them was meant to run the other's model.",
    )


def _revision(one: KeySpace, other: KeySpace) -> Explanation:
    if "unresolved" in (one.revision, other.revision):
        return Explanation(
            Verdict.CHANGE,
            "One engine did not find the model's files in its hub cache, so its revision is only a "
            "name.",
            "Give both the same HF_HOME or --download-dir, filled before the engine starts, so "
            "that the commit is known.",
        )
    if checkpoint(one) is not None and checkpoint(one) == checkpoint(other):
        return Explanation(
            Verdict.CHANGE,
            "The weights are the same, but the engines name their revision differently.",
            "Start every engine with the same --revision, or with the same folder.",
        )
    return Explanation(
        Verdict.NEVER,
        "Another revision of a model is another checkpoint with different blocks.",
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
            "One engine has random weights (--load-format dummy)."
            if dummy
            else "The weight files differ: another checkpoint, another revision, or a converted or "
            "quantized copy. Their blocks differ too.",
            "Serve the same files on both. If they should be the same, compare names, sizes and "
            "config.json of the two folders: the digest covers all of them.",
        )
    if causes := differing(one, other, "dtype"):
        return follows(causes, "Its second part is a digest of settings that change the bytes.")
    return Explanation(
        Verdict.CHANGE,
        "The weight files are the same, but a setting of the engine that changes the bytes "
        "differs, or the model's own configuration.",
        "Compare the two command lines: --dtype, --quantization, --hf-overrides, --load-format, "
        "--model-loader-extra-config, the attention backend, --mamba-cache-dtype, "
        "--mamba-ssm-cache-dtype, --mamba-cache-mode.",
    )


def _dtype(one: KeySpace, other: KeySpace) -> Explanation:
    return Explanation(
        Verdict.NEVER,
        f"Blocks of {one.dtype} and {other.dtype} have different bytes, and converting them would "
        "change answers.",
        "Start both with the same --dtype and --kv-cache-dtype.",
    )


def _hash_algorithm(one: KeySpace, other: KeySpace) -> Explanation:
    if UNKNOWN in (one.hash_algorithm, other.hash_algorithm):
        return unknown()
    return Explanation(
        Verdict.CHANGE,
        f"The same prompt has different keys with {one.hash_algorithm} and {other.hash_algorithm}.",
        "Start both with the same --prefix-caching-hash-algo; sha256 is the default and needs "
        "no seed.",
    )


def _hash_seed(one: KeySpace, other: KeySpace) -> Explanation:
    if any(space.hash_seed.startswith(_RANDOM) for space in (one, other)):
        why = (
            "Block hashes start from a seed, and with xxhash an engine draws a random one for "
            "each process, so the same prompt has different keys in each."
        )
    elif causes := differing(one, other, "hash_algorithm"):
        return follows(causes, "Each algorithm starts from a seed of its own.")
    else:
        why = "Block hashes start from a seed, so the same prompt has different keys."
    return Explanation(
        Verdict.CHANGE,
        why,
        "Set PYTHONHASHSEED to the same value on all replicas, or to none if they use sha256 "
        "(--prefix-caching-hash-algo sha256).",
    )


def _isa(one: KeySpace, other: KeySpace) -> Explanation:
    if one.isa.split(" ")[0] != other.isa.split(" ")[0]:
        why = "Each platform arranges and rounds the numbers of a block differently."
    elif one.isa.startswith("cpu"):
        why = "On CPUs the engine packs blocks for the widest instruction set it finds."
    else:
        why = (
            "Devices of different capabilities run different kernels, which arrange and round "
            "numbers differently."
        )
    return Explanation(
        Verdict.NEVER,
        why,
        "Only equal hardware can share: run the replicas of a store on nodes of one kind "
        "(a node selector, a node pool), or give each kind its own store.",
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
