"""The arrangement of the ranks' KV in a slot, derived from the engine's configuration.

*Canonical*: a slot holds all KV heads, in the same places on any number of ranks. Engines of any
tensor-parallel size can read each other's blocks; each rank copies its own heads in and out.
*Per rank*: a slot has one slice per rank, and only engines of equal sizes share blocks.

The scheduler and every worker choose independently, before any tensor exists, and must come to
the same result. The choice therefore uses only what all of them are given. The workers check
later that their tensors agree with it (`slots.SlotLayout.from_mappings`).
"""

from typing import TYPE_CHECKING, Final

import msgspec

from kvtier.errors import InvalidSettings

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.v1.kv_offload.config import OffloadingConfig

OPTION: Final = "canonical_layout"
"""vLLM's own key. Absent: kvtier chooses; true: required; false: forbidden."""

_BLOCK_COMPACT: Final = ("LBNHC", "LBHNC")
"""Layouts in which a layer's block is contiguous. In all others the engine passes blocks of
several layers as a whole and does not report where in them a head is."""

_NOT_CERTIFIED_BY_DEFAULT: Final = (
    "by default the engine certifies only one group of plain attention whose KV heads divide by "
    f'the ranks, on its first model runner; with "{OPTION}": true it examines every layer'
)
_NOT_CERTIFIED: Final = "the engine reports some layer whose KV does not divide by whole heads"


class Arrangement(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a slot and of the part that a rank may use."""

    payload_bytes: int
    """Bytes of a slot that carry KV."""
    slice_bytes: int
    """Bytes that one rank may use: its slice, or the whole payload of a canonical slot."""
    obstacle: str | None
    """The reason why slots are per rank, for logs and errors; None if they are canonical."""

    @property
    def is_canonical(self) -> bool:
        """True if a slot is the same on any tensor-parallel size."""
        return self.obstacle is None


def choose_arrangement(config: "OffloadingConfig", engine: "VllmConfig | None") -> Arrangement:
    """Return the arrangement of this engine's slots.

    `engine` is the engine's full configuration, if it was found. The result is canonical if the
    engine certifies it and the sizes agree, unless `canonical_layout` is false. Raises
    InvalidSettings if `canonical_layout` is true and not possible, or if there is no KV cache.
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
    """Return the reason why slots cannot be canonical, worded to follow a colon, or None."""
    parallel = config.parallel
    if (parallel.world_size, parallel.pcp_size, parallel.dcp_size) != (parallel.tp_size, 1, 1):
        return "pipeline or context parallelism divides more than heads among the ranks"
    if config.kv_cache_layout not in _BLOCK_COMPACT:
        return f"KV cache layout {config.kv_cache_layout} is none of {', '.join(_BLOCK_COMPACT)}"
    if not parallel.is_parallelism_agnostic:
        return _NOT_CERTIFIED if config.canonical_layout else _NOT_CERTIFIED_BY_DEFAULT
    if parallel.world_size == 1:
        return None
    if engine is None:
        return "the engine's configuration was not found, so the KV heads are unknown"
    if config.canonical_layout:
        return _mixed_copies(config, engine.model_config)
    return _uneven_layers(config, engine.model_config)


def _mixed_copies(config: "OffloadingConfig", model: "ModelConfig") -> str | None:
    """Return the obstacle if `canonical_layout` is true: a mix whose copies cannot be counted.

    The engine has examined every layer, but does not report how many ranks hold copies where
    latent attention is mixed with other kinds.
    """
    if model.use_mla and not config.replicated_layout:
        return "the size of latent attention beside other kinds, or on several hosts, is unknown"
    return None


def _uneven_layers(config: "OffloadingConfig", model: "ModelConfig") -> str | None:
    """Return the obstacle if `canonical_layout` is absent: layers with different KV heads.

    In the scheduler the engine's certificate covers one layer of each group only. If the layers
    differ in heads, the workers could not start; so the sizes must add up to equal layers.
    """
    from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE

    dtype = STR_DTYPE_TO_TORCH_DTYPE.get(config.model.dtype)
    heads, left_over = divmod(model.get_total_num_kv_heads(), config.parallel.tp_size)
    row_bytes = 2 * heads * model.get_head_size() * (dtype.itemsize if dtype else 0)
    expected = sum(len(group.layer_names) * group.tokens_per_block for group in config.groups)
    if left_over or expected * row_bytes != config.worker_kv_bytes_per_block:
        return "the layers' KV is not a whole number of equal heads per rank"
    return None


def _distinct_shares(config: "OffloadingConfig", engine: "VllmConfig | None") -> int:
    """Return the number of ranks that hold different KV; the others hold copies."""
    ranks = config.parallel.world_size
    if ranks == 1 or config.replicated_layout or engine is None:
        return 1
    return min(ranks, int(engine.model_config.get_total_num_kv_heads()))
