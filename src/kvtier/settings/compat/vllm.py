"""vLLM's own offloading settings, read into kvtier's tree.

Why it exists: whoever has `CPUOffloadingSpec` running changes `spec_name` and nothing else.
Invariant: a key is read, or is vLLM's own business, or is an error; none is dropped silently
that would have changed where blocks are kept.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from kvtier import plugins
from kvtier.errors import InvalidSettings
from kvtier.settings.sizes import parse_size

ENGINE_KEYS: Final[Mapping[str, str]] = {
    "spec_name": "`KVTier`: what makes the engine use kvtier.",
    "spec_module_path": "`kvtier.connectors.vllm.spec`, where `VLLM_PLUGINS` keeps our entry "
    "point out.",
    "block_size": "Tokens of a cached block, a multiple of the device block's; or:",
    "blocks_per_chunk": "Device blocks that a cached block holds. Part of the key space.",
    "canonical_layout": "Whether a cached block holds the KV heads of all ranks in one order, so "
    "that engines of any tensor-parallel size share it. Absent: where the engine vouches for it "
    "unasked (one group of plain attention). `true`: also for sliding windows, latent attention "
    "and fewer heads than ranks; an error at start where it cannot be. `false`: never.",
    "lazy_offload": "Of another of vLLM's connectors; without effect here.",
    "offload_prompt_only": "Whether blocks of generated tokens are left out (vLLM's default).",
    "self_describing_kv_events": "Whether KV events carry token ids.",
}
"""Keys that the engine reads for itself, whatever the spec, and what they do."""

# Tuning of parts of vLLM that kvtier replaces and that have no counterpart here.
_WITHOUT_COUNTERPART: Final = frozenset({"max_tracker_size", "backpressure"})


def translate(extra_config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """`kv_connector_extra_config` in kvtier's own form; its own keys pass through.

    `cpu_bytes_to_use` becomes `ram.capacity`, `eviction_policy` `ram.eviction`, and a
    `store_threshold` of 2 or more `ram.admission: second_touch`. Raises InvalidSettings where
    a key asks for something kvtier does not do, or says the same thing twice.
    """
    own: dict[str, Any] = {}
    ram: dict[str, Any] = {}
    for key, value in extra_config.items():
        if key in _READERS:
            ram |= _READERS[key](value, f"{origin}: {key}")
        elif key in _REFUSALS:
            if value:
                raise InvalidSettings(f"{origin}: {key}: {_REFUSALS[key]}")
        elif key not in ENGINE_KEYS and key not in _WITHOUT_COUNTERPART:
            own[key] = value
    return _with_ram(own, ram, origin) if ram else own


def _with_ram(own: dict[str, Any], ram: dict[str, Any], origin: str) -> dict[str, Any]:
    given = own.get("ram", {})
    if not isinstance(given, Mapping):
        given = {"capacity": given}
    twice = sorted(set(given) & set(ram))
    if twice:
        raise InvalidSettings(
            f"{origin}: ram.{twice[0]} is given in vLLM's way as well; keep `ram` and remove "
            f"{_NAMES[twice[0]]}"
        )
    return {**own, "ram": {**given, **ram}}


def _read_capacity(value: object, where: str) -> dict[str, Any]:
    return {"capacity": parse_size(value, where)}


def _read_eviction(value: object, where: str) -> dict[str, Any]:
    try:
        plugins.load("eviction", str(value))
    except InvalidSettings as error:
        raise InvalidSettings(f"{where}: {error}") from error
    return {"eviction": value}


def _read_threshold(value: object, where: str) -> dict[str, Any]:
    """How often a block is offered before it is kept; below 2 everything is."""
    if not re.fullmatch(r"[0-9]{1,9}", str(value)):
        raise InvalidSettings(f"{where}: {value!r} is not a whole number; write for example 2")
    return {"admission": "second_touch"} if int(str(value)) >= 2 else {}


_READERS: Final[Mapping[str, Callable[[object, str], dict[str, Any]]]] = {
    "cpu_bytes_to_use": _read_capacity,
    "eviction_policy": _read_eviction,
    "store_threshold": _read_threshold,
}
_NAMES: Final = {
    "capacity": "cpu_bytes_to_use",
    "eviction": "eviction_policy",
    "admission": "store_threshold",
}
_REFUSALS: Final = {
    "secondary_tiers": "vLLM's secondary tiers are not kvtier's; for a local folder write "
    '"disk": "/path=100GiB" instead',
    "cache_policy_module_path": "kvtier does not load vLLM's policies; choose one with "
    '"ram": {"eviction": "lru"}',
}
