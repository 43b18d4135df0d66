"""Explanations of the fields that say how blocks are divided and how their bytes are arranged.

Each function explains one field that differs between the key spaces `one` and `other`.
`explanations` has those of the other fields.
"""

from typing import Final, NamedTuple

from kvtier.blocks.key import KeySpace
from kvtier.diagnosis.report import Verdict

UNKNOWN: Final = "unknown"
"""What an engine records for a value that it could not determine."""
UNKNOWN_WHY: Final = (
    "the engine could not determine its own configuration when it started, and unknown values "
    "never count as equal."
)
UNKNOWN_FIX: Final = (
    "See kvtier's warning in that engine's log. Start it with `kvtier serve` or with the server "
    "of a supported vLLM, and with the model's files on its host."
)
_DIRECT: Final = "direct"
_BLOCK_COMPACT: Final = frozenset({"LBNHC", "LBHNC"})
"""Layouts in which each head of a block is contiguous."""
_FAMILY_FIX: Final = (
    "Set VLLM_KV_CACHE_LAYOUT to LBNHC or LBHNC on both, where the backend has it. "
)


class Explanation(NamedTuple):
    """An explanation of a difference, and what to change."""

    verdict: Verdict
    why: str
    change: str


def unknown() -> Explanation:
    """Explain a field that one of the engines could not determine."""
    return Explanation(Verdict.CHANGE, f"On one side {UNKNOWN_WHY}", UNKNOWN_FIX)


def differing(one: KeySpace, other: KeySpace, *fields: str) -> list[str]:
    """Return those of `fields` that differ."""
    return [field for field in fields if getattr(one, field) != getattr(other, field)]


def follows(causes: list[str], why: str) -> Explanation:
    """Explain a field that is equal once the fields `causes` are."""
    return Explanation(
        Verdict.FOLLOWS, why, f"Nothing by itself: it follows from {join_words(causes)}."
    )


def join_words(words: list[str]) -> str:
    """Join words as in `a, b and c`."""
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def layout(one: KeySpace, other: KeySpace) -> Explanation:
    """Explain the order of the numbers in a block, and how devices divide them."""
    words, other_words = one.layout.split(), other.layout.split()
    if UNKNOWN in (*words[:1], *other_words[:1]):
        return unknown()
    if words[:1] != other_words[:1]:
        return Explanation(
            Verdict.CHANGE,
            f"The numbers of a block are in a different order: {one.layout} and {other.layout}. "
            "The attention backend chooses it.",
            "Set VLLM_KV_CACHE_LAYOUT to the same value on both, or choose the same attention "
            "backend.",
        )
    if _is_rearranged(one, other):
        return Explanation(
            Verdict.CHANGE,
            "One engine writes blocks as its devices hold them (direct), the other in an order "
            "that is independent of the number of devices (canonical).",
            _canonical_fix(one, other),
        )
    return Explanation(
        Verdict.CHANGE,
        "Context parallelism (pcp, dcp) divides the tokens of a block between devices.",
        "Start both with the same --prefill-context-parallel-size and "
        "--decode-context-parallel-size.",
    )


def _canonical_fix(one: KeySpace, other: KeySpace) -> str:
    """Say how to make blocks equal for any number of ranks, or why that is not possible."""
    for space in (one, other):
        divided = {word for word in space.layout.split() if word.startswith(("pcp", "dcp"))}
        if space.pp_size > 1 or divided - {"pcp1", "dcp1"}:
            return "With pipeline or context parallelism, no order is the same for all ranks."
    layouts = {space.layout.split(" ")[0] for space in (one, other)}
    family = "" if layouts <= _BLOCK_COMPACT else _FAMILY_FIX
    return (
        f'{family}Set "canonical_layout": true in kv_connector_extra_config of both, or remove '
        '"canonical_layout": false, if the model allows it (whole KV heads on each rank); '
        "with true, an engine that cannot do it says why when it starts."
    )


def block_bytes(one: KeySpace, other: KeySpace) -> Explanation:
    """Explain the size of a block."""
    why = "A block of one takes more bytes than a block of the other."
    causes = differing(
        one,
        other,
        *("weights", "dtype", "layout", "blocks_per_chunk"),
        *("tokens_per_hash", "groups", "tp_size", "pp_size"),
    ) or differing(one, other, "world_size")
    if causes:
        return follows(causes, why)
    return Explanation(
        Verdict.CHANGE,
        f"{why} Nothing else differs, so the engines pad or divide their memory differently.",
        "Start both with the same --block-size and the same attention backend.",
    )


def blocks_per_chunk(one: KeySpace, other: KeySpace) -> Explanation:
    """Explain how many blocks of the engine a stored block contains."""
    return Explanation(
        Verdict.CHANGE,
        f"A stored block contains {one.blocks_per_chunk} blocks of the engine here and "
        f"{other.blocks_per_chunk} there, so blocks begin at different tokens.",
        "Give both the same blocks_per_chunk (or block_size) in kv_connector_extra_config.",
    )


def tokens_per_hash(one: KeySpace, other: KeySpace) -> Explanation:
    """Explain the number of tokens per hash."""
    return Explanation(
        Verdict.CHANGE,
        f"Prompts are hashed every {one.tokens_per_hash} tokens here and every "
        f"{other.tokens_per_hash} there, so the same prompt has different keys.",
        "Start both with the same --block-size; without one, with the same attention backend, "
        "which chooses it.",
    )


def groups(one: KeySpace, other: KeySpace) -> Explanation:
    """Explain which layers and how many tokens the blocks of each group hold."""
    tokens, other_tokens = (
        [group.tokens_per_block for group in space.groups] for space in (one, other)
    )
    if len(tokens) != len(other_tokens):
        return Explanation(
            Verdict.CHANGE,
            f"The engine divides the model's layers into {len(tokens)} groups here and into "
            f"{len(other_tokens)} there (full attention, sliding window, state).",
            "Start both with the same model options; --disable-hybrid-kv-cache-manager and a "
            "draft model (--speculative-config) change the groups.",
        )
    if tokens != other_tokens:
        return Explanation(
            Verdict.CHANGE,
            f"A block holds {tokens} tokens here and {other_tokens} there.",
            "Start both with the same --block-size.",
        )
    if causes := differing(one, other, "pp_size"):
        return follows(causes, "The blocks hold different layers.")
    return Explanation(
        Verdict.CHANGE,
        "The blocks hold different layers, or the same ones in a different order.",
        "Start both with the same model options and the same engine version; a draft model "
        "(--speculative-config) adds layers of its own.",
    )


def _is_rearranged(one: KeySpace, other: KeySpace) -> bool:
    """Return True if only one of them is canonical, which makes its sizes 1."""
    return one.layout.split()[1:2] != other.layout.split()[1:2]


def world_size(one: KeySpace, other: KeySpace) -> Explanation:
    """Explain the number of workers that a block is divided between."""
    why = f"A block is divided between {one.world_size} workers here and {other.world_size} there."
    if causes := differing(one, other, "tp_size", "pp_size", "layout"):
        return follows(causes, why)
    return Explanation(Verdict.CHANGE, why, "Start both with the same number of workers.")


def tp_size(one: KeySpace, other: KeySpace) -> Explanation:
    """Explain the number of ranks that a block's heads are divided between."""
    why = f"Blocks are divided per rank: {one.tp_size} here, {other.tp_size} there."
    if _is_rearranged(one, other):
        return follows(["layout"], why)
    same = "Otherwise start both with the same --tensor-parallel-size."
    if _DIRECT in one.layout.split() or _DIRECT in other.layout.split():
        return Explanation(Verdict.CHANGE, why, f"{_canonical_fix(one, other)} {same}")
    return Explanation(Verdict.CHANGE, why, "Start both with the same --tensor-parallel-size.")


def pp_size(one: KeySpace, other: KeySpace) -> Explanation:
    """Explain the number of stages that a block's layers are divided between."""
    why = f"A block's layers are divided into {one.pp_size} stages here, {other.pp_size} there."
    if _is_rearranged(one, other):
        return follows(["layout"], why)
    return Explanation(
        Verdict.CHANGE,
        why,
        "Start both with the same --pipeline-parallel-size.",
    )
