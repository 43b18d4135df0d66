"""One run of `kvtier doctor`: checks settings, machine, storage and key spaces.

Each place has a time limit, because a dead mount never answers, and that is what the user has to
know. Invariant: a run always ends; a place that did not answer in time is a failed check.
"""

import importlib.metadata
import os
import platform
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from kvtier.blocks.checksum import checksum_for
from kvtier.connectors.vllm import versions
from kvtier.deadline import within
from kvtier.diagnosis import storage
from kvtier.diagnosis.comparison import LocatedSpace, compare, remarks_on
from kvtier.diagnosis.manifests import PlaceContents, read_place
from kvtier.diagnosis.report import Check, Diagnosis, failed, fine, report_of, warned
from kvtier.errors import InvalidSettings
from kvtier.settings import RamSettings, Resolved, Settings, machine
from kvtier.settings.layers import DEFAULT_ORIGIN
from kvtier.settings.machine import Probes
from kvtier.settings.options import OPTIONS
from kvtier.settings.sizes import approximate_size
from kvtier.tiers.shared.manifest import manifest_of

_SHARE: Final = 0.9
"""Share of the limit up to which the RAM tier is fine; the engine needs the rest."""
ANSWER_S: Final = 20.0
"""Time limit for one place. A bucket's requests have their own, shorter limits."""
OnPlace = Callable[[str], None]
"""Called with each place before it is read."""


class _ConfiguredTier(NamedTuple):
    """A tier that the settings name."""

    setting: str
    place: str
    checks: Callable[[], Iterable[Check]]
    key_file: str | None = None


def examine_places(
    places: Sequence[str], on_place: OnPlace, answer_s: float = ANSWER_S
) -> Diagnosis:
    """Compare the key spaces in `places`; call `on_place` before each place."""
    return _finish([], [_read(place, on_place, answer_s) for place in places])


def examine(
    resolved: Resolved | InvalidSettings, on_place: OnPlace, answer_s: float = ANSWER_S
) -> Diagnosis:
    """Check settings, machine and storage, and compare the key spaces in that storage.

    For invalid settings, report the error and the checks that do not depend on them.
    """
    checks = [*version_checks(), seed_check()]
    if isinstance(resolved, InvalidSettings):
        return report_of([failed("settings", str(resolved)), *checks], [])
    settings = resolved.settings
    checks = [settings_check(resolved), *checks, ram_check(settings.ram)]
    contents = []
    for tier in _tiers(settings):
        on_place(tier.place)
        found, answered = _bounded(tier.setting, tier.checks, answer_s)
        checks += found
        if answered and ("://" in tier.place or Path(tier.place).exists()):
            read = _read(tier.place, on_place, answer_s)
            secrets = _secrets(tier, read)
            contents.append(PlaceContents(read.spaces, [*read.checks, *secrets]))
    return _finish(checks, contents)


def _tiers(settings: Settings) -> list[_ConfiguredTier]:
    disk, shared, bucket = settings.disk, settings.shared, settings.objectstore
    tiers = []
    if disk is not None:
        tiers.append(_ConfiguredTier("disk.path", disk.path, partial(storage.disk_checks, disk)))
    if shared is not None:
        checks = partial(storage.shared_checks, shared)
        tiers.append(_ConfiguredTier("shared.path", shared.path, checks, shared.key_file))
    if bucket is not None:
        checks = partial(storage.bucket_checks, bucket)
        tiers.append(_ConfiguredTier("objectstore.url", bucket.url, checks, bucket.key_file))
    return tiers


def _bounded(
    topic: str, work: Callable[[], Iterable[Check]], answer_s: float
) -> tuple[list[Check], bool]:
    """Run `work` with a time limit; return its checks, and whether the place can be used."""
    found: list[Check] = []
    is_abandoned = threading.Event()

    def collect() -> None:
        for check in work():
            found.append(check)
            if is_abandoned.is_set():
                return  # closes the generator, which removes what it has written

    try:
        within(answer_s, collect, lambda _: None)
    except KeyboardInterrupt:
        is_abandoned.set()
        raise
    except TimeoutError as error:
        fix = "Check that the storage is mounted and answers, or remove the tier."
        return [*found, failed(topic, str(error), fix)], False
    except InvalidSettings as error:
        return [*found, failed(topic, str(error))], False
    except OSError as error:
        reason = error.strerror or str(error)
        fix = "Use a place that this user or these credentials may list, read and write."
        return [*found, failed(topic, f"cannot be used ({reason})", fix)], False
    return found, True


def _read(place: str, on_place: OnPlace, answer_s: float) -> PlaceContents:
    on_place(place)
    try:
        return within(answer_s, partial(read_place, place), lambda _: None)
    except TimeoutError as error:
        fix = "Check that it is mounted and answers."
        return PlaceContents([], [failed(place, str(error), fix)])


def _secrets(tier: _ConfiguredTier, found: PlaceContents) -> list[Check]:
    """Return warnings about key spaces whose blocks these settings cannot verify."""
    try:
        checksum = checksum_for(Path(tier.key_file) if tier.key_file else None)
    except InvalidSettings:
        return []  # reported already
    setting = f"{tier.setting.partition('.')[0]}.key_file"
    return [
        warned(
            setting,
            f"{each.name} uses a different secret than these settings, or only one of them has a "
            "secret: an engine of this model would refuse to start with these settings",
            f"Give every engine of the store the same {setting}.",
        )
        for each in found.spaces
        if each.witness not in (None, manifest_of(each.space, checksum).witness)
    ]


def _finish(checks: list[Check], contents: Sequence[PlaceContents]) -> Diagnosis:
    spaces: list[LocatedSpace] = []
    for found in contents:
        spaces += found.spaces
        checks = [*checks, *found.checks]
    families = compare(spaces)
    return report_of([*checks, *remarks_on(families)], families)


def settings_check(resolved: Resolved) -> Check:
    """Return a check that lists the settings and their sources."""
    given = [
        f"{option.name} {option.format(found.value)} ({found.origin})"
        for option in OPTIONS
        if (found := resolved.values.get(option.name)) and found.origin != DEFAULT_ORIGIN
    ]
    return fine("settings", "; ".join(given))


def ram_check(ram: RamSettings, probes: Probes | None = None) -> Check:
    """Check the RAM tier's size against the machine, its container, and the free memory."""
    probes = probes or Probes()
    size = approximate_size(ram.capacity)
    limit_bytes = _limit_bytes(probes)
    try:
        machine.check_ram(ram, probes)
    except InvalidSettings as error:
        if limit_bytes is None or ram.capacity > limit_bytes:
            return failed("ram.capacity", str(error))
        # An engine that runs here with these settings has allocated its memory already.
        return warned("ram.capacity", str(error), "Ignore this if such an engine is running here.")
    if limit_bytes is None:
        return fine("ram.capacity", size)
    text = f"{size} of the {approximate_size(limit_bytes)} that this machine or container may use"
    if ram.capacity > _SHARE * limit_bytes:
        return warned("ram.capacity", f"{text}: little is left for the engine", "Make it smaller.")
    return fine("ram.capacity", text)


def version_checks() -> list[Check]:
    """Check the versions in this Python environment from metadata, without importing an engine."""
    try:
        ours = importlib.metadata.version("kvtier")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        ours = "(not installed)"
    found = [fine("versions", f"kvtier {ours}, Python {platform.python_version()}")]
    try:
        installed = versions.installed()
    except InvalidSettings as error:  # only a warning: an evictor's host needs no vLLM
        return [*found, warned("vllm", str(error))]
    try:
        versions.supported(installed)
    except InvalidSettings as error:
        return [*found, failed("vllm", str(error))]
    return [*found, fine("vllm", f"vllm {installed} is supported")]


def seed_check(env: Mapping[str, str] = os.environ) -> Check:
    """Say whether replicas give the same prompt the same keys, according to PYTHONHASHSEED."""
    seed = env.get("PYTHONHASHSEED")
    if seed is not None:
        text = f"{seed} here; engines share only with those that have the same value"
    else:
        text = (
            "not set, which is right with sha256 (the default) if no other replica sets it; with "
            "--prefix-caching-hash-algo xxhash, engines share only if all set it to the same value"
        )
    return fine("PYTHONHASHSEED", text)


def _limit_bytes(probes: Probes) -> int | None:
    """Return the memory of the machine or its container; None if unknown."""
    total_bytes, _ = machine.memory_bytes(probes)
    limits = [total_bytes, machine.cgroup_limit_bytes(probes)]
    return min((limit for limit in limits if limit is not None), default=None)
