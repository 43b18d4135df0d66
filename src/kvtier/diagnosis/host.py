"""This machine and this environment: settings, memory, versions, the seed of block hashes."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from typing import Final

from kvtier.connectors.vllm import versions
from kvtier.diagnosis.report import Check, failed, fine, warned
from kvtier.errors import InvalidSettings
from kvtier.settings import RamSettings, Resolved, machine
from kvtier.settings.layers import DEFAULT_ORIGIN
from kvtier.settings.machine import Probes
from kvtier.settings.options import OPTIONS
from kvtier.settings.sizes import approximate_size

_SHARE: Final = 0.9
"""Of a limit: an engine has weights and buffers of its own."""


def settings_check(resolved: Resolved) -> Check:
    """What is set, and where it comes from."""
    given = [
        f"{option.name} {option.format(found.value)} ({found.origin})"
        for option in OPTIONS
        if (found := resolved.values.get(option.name)) and found.origin != DEFAULT_ORIGIN
    ]
    return fine("settings", "; ".join(given))


def ram_check(ram: RamSettings, probes: Probes | None = None) -> Check:
    """Against this machine, its container, and what is free now."""
    probes = probes or Probes()
    size = approximate_size(ram.capacity)
    limit_bytes = _limit_bytes(probes)
    try:
        machine.check_ram(ram, probes)
    except InvalidSettings as error:
        if limit_bytes is None or ram.capacity > limit_bytes:
            return failed("ram.capacity", str(error))
        # An engine that runs here with these settings has taken its memory already.
        return warned("ram.capacity", str(error), "Nothing, if such an engine runs here now.")
    if limit_bytes is None:
        return fine("ram.capacity", size)
    told = f"{size} of the {approximate_size(limit_bytes)} that this machine or container may use"
    if ram.capacity > _SHARE * limit_bytes:
        return warned("ram.capacity", f"{told}: little is left for the engine", "Make it smaller.")
    return fine("ram.capacity", told)


def version_checks() -> list[Check]:
    """Of this Python environment, read from metadata: no engine is imported."""
    try:
        ours = importlib.metadata.version("kvtier")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        ours = "(not installed)"
    found = [fine("versions", f"kvtier {ours}, Python {platform.python_version()}")]
    try:
        installed = versions.installed()
    except InvalidSettings as error:  # an evictor's host needs none
        return [*found, warned("vllm", str(error))]
    try:
        versions.supported(installed)
    except InvalidSettings as error:
        return [*found, failed("vllm", str(error))]
    return [*found, fine("vllm", f"vllm {installed} is supported")]


def seed_check(env: Mapping[str, str] = os.environ) -> Check:
    """Whether replicas give the same prompt the same keys."""
    seed = env.get("PYTHONHASHSEED")
    if seed is not None:
        told = f"{seed} here; engines share only with those that have the same"
    else:
        told = (
            "not set, nor may it be on other replicas: right with sha256 (the default); with "
            "--prefix-caching-hash-algo xxhash no two engines share until it is set, to the same "
            "value on all"
        )
    return fine("PYTHONHASHSEED", told)


def _limit_bytes(probes: Probes) -> int | None:
    """What may be used at most; None where nobody tells."""
    total_bytes, _ = machine.memory_bytes(probes)
    limits = [total_bytes, machine.cgroup_limit_bytes(probes)]
    return min((limit for limit in limits if limit is not None), default=None)
