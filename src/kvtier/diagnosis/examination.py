"""One run of `kvtier doctor`: every place and every setting, each within its time.

Why within: a dead mount never answers, and a person who asks what is wrong must be told just
that. Invariant: whatever hangs, a run ends; what did not answer is a failed check.
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


ANSWER_S: Final = 20.0
"""For one place to answer. A bucket's requests have their own, shorter limits."""


Tell = Callable[[str], None]


class _ConfiguredTier(NamedTuple):
    """A tier that the settings name."""

    setting: str
    place: str
    checks: Callable[[], Iterable[Check]]
    key_file: str | None = None


def examine_places(places: Sequence[str], tell: Tell, answer_s: float = ANSWER_S) -> Diagnosis:
    """What keeps apart the key spaces in `places`; `tell` hears what is asked next."""
    return _finish([], [_read(place, tell, answer_s) for place in places])


def examine(
    resolved: Resolved | InvalidSettings, tell: Tell, answer_s: float = ANSWER_S
) -> Diagnosis:
    """Settings, machine, storage, and the key spaces there.

    Of settings that are wrong only that is told, and what does not depend on them.
    """
    checks = [*version_checks(), seed_check()]
    if isinstance(resolved, InvalidSettings):
        return report_of([failed("settings", str(resolved)), *checks], [])
    settings = resolved.settings
    checks = [settings_check(resolved), *checks, ram_check(settings.ram)]
    readings = []
    for tier in _tiers(settings):
        tell(tier.place)
        found, answered = _bounded(tier.setting, tier.checks, answer_s)
        checks += found
        if answered and ("://" in tier.place or Path(tier.place).exists()):
            reading = _read(tier.place, tell, answer_s)
            readings.append(
                PlaceContents(reading.sightings, [*reading.checks, *_secrets(tier, reading)])
            )
    return _finish(checks, readings)


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
    """The checks that came in time, and whether the place can be used at all."""
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
        fix = "See whether what it names is mounted and alive, or leave the tier out."
        return [*found, failed(topic, str(error), fix)], False
    except InvalidSettings as error:
        return [*found, failed(topic, str(error))], False
    except OSError as error:
        reason = error.strerror or str(error)
        fix = "Name a place that this user or these credentials may list, read and write."
        return [*found, failed(topic, f"cannot be used ({reason})", fix)], False
    return found, True


def _read(place: str, tell: Tell, answer_s: float) -> PlaceContents:
    tell(place)
    try:
        return within(answer_s, partial(read_place, place), lambda _: None)
    except TimeoutError as error:
        fix = "See whether it is mounted and alive."
        return PlaceContents([], [failed(place, str(error), fix)])


def _secrets(tier: _ConfiguredTier, reading: PlaceContents) -> list[Check]:
    """Key spaces whose blocks these settings cannot verify."""
    try:
        checksum = checksum_for(Path(tier.key_file) if tier.key_file else None)
    except InvalidSettings:
        return []  # told already
    setting = f"{tier.setting.partition('.')[0]}.key_file"
    return [
        warned(
            setting,
            f"{each.name} is verified with another secret, or one with none: an engine of "
            "this model would refuse to start with these settings",
            f"Give every engine of the store the same {setting}.",
        )
        for each in reading.sightings
        if each.witness not in (None, manifest_of(each.space, checksum).witness)
    ]


def _finish(checks: list[Check], readings: Sequence[PlaceContents]) -> Diagnosis:
    sightings: list[LocatedSpace] = []
    for reading in readings:
        sightings += reading.sightings
        checks = [*checks, *reading.checks]
    families = compare(sightings)
    return report_of([*checks, *remarks_on(families)], families)
