"""One run of `kvtier doctor`: every place and every setting, each within its time.

Why within: a dead mount never answers, and a person who asks what is wrong must be told just
that. Invariant: whatever hangs, a run ends; what did not answer is a failed check.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from kvtier.blocks.checksum import checksum_for
from kvtier.deadline import within
from kvtier.diagnosis import host, storage
from kvtier.diagnosis.comparison import Sighting, compare, oddities
from kvtier.diagnosis.manifests import Reading, read_place
from kvtier.diagnosis.report import Check, Report, failed, report_of, warned
from kvtier.errors import InvalidSettings
from kvtier.settings import Resolved, Settings
from kvtier.tiers.shared.manifest import manifest_of

ANSWER_S: Final = 20.0
"""For one place to answer. A bucket's requests have their own, shorter limits."""

Tell = Callable[[str], None]


class _Tier(NamedTuple):
    """A tier that the settings name."""

    setting: str
    place: str
    checks: Callable[[], Iterable[Check]]
    key_file: str | None = None


def examine_places(places: Sequence[str], tell: Tell, answer_s: float = ANSWER_S) -> Report:
    """What keeps apart the key spaces in `places`; `tell` hears what is asked next."""
    return _finish([], [_read(place, tell, answer_s) for place in places])


def examine(resolved: Resolved | InvalidSettings, tell: Tell, answer_s: float = ANSWER_S) -> Report:
    """Settings, machine, storage, and the key spaces there.

    Of settings that are wrong only that is told, and what does not depend on them.
    """
    checks = [*host.version_checks(), host.seed_check()]
    if isinstance(resolved, InvalidSettings):
        return report_of([failed("settings", str(resolved)), *checks], [])
    settings = resolved.settings
    checks = [host.settings_check(resolved), *checks, host.ram_check(settings.ram)]
    readings = []
    for tier in _tiers(settings):
        tell(tier.place)
        found, answered = _bounded(tier.setting, tier.checks, answer_s)
        checks += found
        if answered and ("://" in tier.place or Path(tier.place).exists()):
            reading = _read(tier.place, tell, answer_s)
            readings.append(Reading(reading.sightings, [*reading.checks, *_secrets(tier, reading)]))
    return _finish(checks, readings)


def _tiers(settings: Settings) -> list[_Tier]:
    disk, shared, bucket = settings.disk, settings.shared, settings.objectstore
    tiers = []
    if disk is not None:
        tiers.append(_Tier("disk.path", disk.path, partial(storage.disk_checks, disk)))
    if shared is not None:
        checks = partial(storage.shared_checks, shared)
        tiers.append(_Tier("shared.path", shared.path, checks, shared.key_file))
    if bucket is not None:
        checks = partial(storage.bucket_checks, bucket)
        tiers.append(_Tier("objectstore.url", bucket.url, checks, bucket.key_file))
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


def _read(place: str, tell: Tell, answer_s: float) -> Reading:
    tell(place)
    try:
        return within(answer_s, partial(read_place, place), lambda _: None)
    except TimeoutError as error:
        fix = "See whether it is mounted and alive."
        return Reading([], [failed(place, str(error), fix)])


def _secrets(tier: _Tier, reading: Reading) -> list[Check]:
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


def _finish(checks: list[Check], readings: Sequence[Reading]) -> Report:
    sightings: list[Sighting] = []
    for reading in readings:
        sightings += reading.sightings
        checks = [*checks, *reading.checks]
    families = compare(sightings)
    return report_of([*checks, *oddities(families)], families)
