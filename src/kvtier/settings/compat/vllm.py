"""Translates vLLM's own offloading settings to kvtier's settings tree.

A user of vLLM's `CPUOffloadingSpec` changes `spec_name` and nothing else. Invariant: each key is
read, or is used by vLLM itself, or is an error; no key that would change where blocks are kept is
ignored silently.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from kvtier import plugins
from kvtier.errors import InvalidSettings
from kvtier.settings.sizes import parse_size

ENGINE_KEYS: Final[Mapping[str, str]] = {
    "spec_name": "`KVTier` makes the engine use kvtier.",
    "spec_module_path": "`kvtier.connectors.vllm.spec`. Needed only if `VLLM_PLUGINS` excludes the "
    "entry point `kvtier`.",
    "block_size": "Tokens per cached block, a multiple of the device block size. Alternative to "
    "`blocks_per_chunk`.",
    "blocks_per_chunk": "Device blocks per cached block. It is part of the key space.",
    "canonical_layout": "Whether a cached block holds the KV heads of all ranks in one order, so "
    "that engines of any tensor-parallel size can share it. If absent, it does where the engine "
    "guarantees that order (one group of plain attention). `true`: also for sliding windows, "
    "latent attention and fewer heads than ranks; an error at start if that is impossible. "
    "`false`: never.",
    "lazy_offload": "A key of another vLLM connector; it has no effect here.",
    "offload_prompt_only": "Whether to store blocks of the prompt only, and none of generated "
    "tokens (vLLM's default).",
    "self_describing_kv_events": "Whether KV events contain token ids.",
}
"""Keys that vLLM itself reads, whatever the spec, and what they do."""

# Keys that tune parts of vLLM which kvtier replaces.
_WITHOUT_COUNTERPART: Final = frozenset({"max_tracker_size", "backpressure"})


def translate(extra_config: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Return `kv_connector_extra_config` in kvtier's own form; kvtier's keys are kept.

    `cpu_bytes_to_use` becomes `ram.capacity`, `eviction_policy` `ram.eviction`, and a
    `store_threshold` of 2 or more `ram.admission: second_touch`. Raises InvalidSettings if a key
    asks for something that kvtier does not support, or a setting is given twice.
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
            f"{origin}: ram.{twice[0]} is also set by vLLM's key {_NAMES[twice[0]]}; remove that "
            "and keep `ram`"
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
    """Translate how often a block must be offered before it is stored; below 2 all blocks are."""
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
    "secondary_tiers": "kvtier does not support vLLM's secondary tiers; for a local folder write "
    '"disk": "/path=100GiB" instead',
    "cache_policy_module_path": "kvtier does not load vLLM's policies; choose one of its own with "
    '"ram": {"eviction": "lru"}',
}
