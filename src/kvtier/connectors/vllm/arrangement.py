"""How the KV of all ranks lies in one slot, decided from the engine's configuration alone.

*Canonical*: a slot holds all KV heads, in the same places on any number of ranks, so engines of
any tensor-parallel size can read each other's blocks; each rank copies its heads in and out.
*Per rank*: each rank has a slice of its own, and only engines of the same sizes can.

The scheduler and every worker decide for themselves, before any tensor exists, and must come to
the same answer. So it rests on what all of them are told, and the workers check later that their
tensors keep the promise (`slots.SlotLayout.from_mappings`).
"""

from typing import TYPE_CHECKING, Final

import msgspec

from kvtier.errors import InvalidSettings

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.v1.kv_offload.config import OffloadingConfig

OPTION: Final = "canonical_layout"
"""vLLM's own key: absent leaves the choice to us, true insists, false forbids."""

_BLOCK_COMPACT: Final = ("LBNHC", "LBHNC")
"""Layouts in which a layer's block is one piece of memory. In all others the engine hands over
blocks of several layers as a whole, without saying where in them a head lies."""

_NOT_VOUCHED_FOR: Final = (
    "unasked, the engine vouches only for one group of plain attention whose KV heads divide by "
    f'the ranks, on its first model runner; with "{OPTION}": true it looks at every layer'
)
_NOT_CERTIFIED: Final = "the engine says that some layer's KV is not made of whole heads a rank"


class Arrangement(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes of a slot, and what a rank may use of it."""

    payload_bytes: int
    """Bytes of a slot that carry KV."""
    slice_bytes: int
    """Bytes one rank may use: its slice, or where canonical, the whole payload."""
    obstacle: str | None
    """Why each rank has a slice of its own, for people. None where the slot is canonical."""

    @property
    def is_canonical(self) -> bool:
        """Whether a slot is the same on any tensor-parallel size."""
        return self.obstacle is None


def choose(config: "OffloadingConfig", engine: "VllmConfig | None") -> Arrangement:
    """The arrangement of this engine's slots; `engine` is its full configuration, if found.

    Canonical where the engine's own word and the sizes allow it, unless `canonical_layout` is
    false. Raises InvalidSettings where it is true and cannot be, and where there is no KV cache.
    """
    asked = config.extra_config.get(OPTION)
    if not isinstance(asked, bool | None):
        raise InvalidSettings(f"{OPTION}: {asked!r} is neither true nor false")
    own_bytes = config.worker_kv_bytes_per_block * config.cache.blocks_per_chunk
    if own_bytes <= 0:
        raise InvalidSettings(
            "the engine reports no KV cache bytes per block: kvtier needs a model with a KV cache"
        )
    obstacle = f"{OPTION} is false" if asked is False else _obstacle(config, engine)
    if asked and obstacle:
        raise InvalidSettings(f'{OPTION}: {obstacle}; remove it or write "{OPTION}": false')
    ranks = config.parallel.world_size
    if obstacle:
        return Arrangement(
            payload_bytes=own_bytes * ranks, slice_bytes=own_bytes, obstacle=obstacle
        )
    payload_bytes = own_bytes * _distinct_shares(config, engine)
    return Arrangement(payload_bytes=payload_bytes, slice_bytes=payload_bytes, obstacle=None)


def _obstacle(config: "OffloadingConfig", engine: "VllmConfig | None") -> str | None:
    """What keeps a slot from being canonical, in words that follow a colon."""
    parallel = config.parallel
    if (parallel.world_size, parallel.pcp_size, parallel.dcp_size) != (parallel.tp_size, 1, 1):
        return "pipeline or context parallelism divides more than heads among the ranks"
    if config.kv_cache_layout not in _BLOCK_COMPACT:
        return f"KV cache layout {config.kv_cache_layout} is none of {', '.join(_BLOCK_COMPACT)}"
    if not parallel.is_parallelism_agnostic:
        return _NOT_CERTIFIED if config.canonical_layout else _NOT_VOUCHED_FOR
    if parallel.world_size == 1:
        return None
    if engine is None:
        return "the engine's configuration was not found, so the KV heads are unknown"
    if config.canonical_layout:
        return _mixed_copies(config, engine.model_config)
    return _uneven_layers(config, engine.model_config)


def _mixed_copies(config: "OffloadingConfig", model: "ModelConfig") -> str | None:
    """Asked for: the engine has looked at every layer, but not counted copies where they mix."""
    if model.use_mla and not config.replicated_layout:
        return "latent attention beside other kinds, or on several hosts, has no known size"
    return None


def _uneven_layers(config: "OffloadingConfig", model: "ModelConfig") -> str | None:
    """Not asked for: the engine's word, which in the scheduler covers one layer of each group.

    Where layers differ in heads the workers would have to refuse to start, so the sizes must
    add up to layers that are all alike.
    """
    from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE

    dtype = STR_DTYPE_TO_TORCH_DTYPE.get(config.model.dtype)
    heads, left_over = divmod(model.get_total_num_kv_heads(), config.parallel.tp_size)
    row_bytes = 2 * heads * model.get_head_size() * (dtype.itemsize if dtype else 0)
    expected = sum(len(group.layer_names) * group.tokens_per_block for group in config.groups)
    if left_over or expected * row_bytes != config.worker_kv_bytes_per_block:
        return "the layers' KV is not a whole number of equal heads a rank"
    return None


def _distinct_shares(config: "OffloadingConfig", engine: "VllmConfig | None") -> int:
    """Into how many different parts the KV is divided; ranks beyond that hold copies."""
    ranks = config.parallel.world_size
    if ranks == 1 or config.replicated_layout or engine is None:
        return 1
    return min(ranks, int(engine.model_config.get_total_num_kv_heads()))
