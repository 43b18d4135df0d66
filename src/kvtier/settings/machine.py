"""Checks whether this machine has the memory and the disk space that the settings ask for.

Otherwise an engine would run out of memory or disk after ten minutes of loading a model. The
checks leave nothing behind. The files they read are parameters, so a test can describe any
machine.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kvtier.deadline import within
from kvtier.errors import InvalidSettings
from kvtier.settings.sizes import approximate_size
from kvtier.settings.tree import DiskSettings, RamSettings, Settings, SharedSettings

_MOUNT_S = 30.0
_UNLIMITED_BYTES = 2**60
"""Larger limits mean no limit: cgroup v1 reports a number near 2^63 if there is none."""


class Probes(msgspec.Struct, frozen=True, kw_only=True):
    """The files in which the kernel reports memory and its limits."""

    meminfo: Path = Path("/proc/meminfo")
    membership: Path = Path("/proc/self/cgroup")
    cgroup_root: Path = Path("/sys/fs/cgroup")


def check(settings: Settings, probes: Probes | None = None) -> None:
    """Raise InvalidSettings with the setting and the fix if the machine is too small.

    Reads a few small files and walks the folder of the disk tier, which takes milliseconds.
    """
    check_ram(settings.ram, probes or Probes())
    if settings.disk is not None:
        check_disk(settings.disk)
    if settings.shared is not None:
        check_shared(settings.shared)


def check_ram(ram: RamSettings, probes: Probes) -> None:
    """Check the capacity against the machine's memory, the cgroup limit, and the free memory."""
    total_bytes, available_bytes = memory_bytes(probes)
    limits = [
        (total_bytes, "this machine has"),
        (cgroup_limit_bytes(probes), "the memory limit of this container (cgroup) allows"),
        (available_bytes, "is free on this machine now"),
    ]
    for limit_bytes, owner in limits:
        if limit_bytes is not None and ram.capacity > limit_bytes:
            raise InvalidSettings(
                f"ram.capacity: {approximate_size(ram.capacity)} is more than the "
                f"{approximate_size(limit_bytes)} that {owner}; make it smaller, and leave room "
                "for the engine itself"
            )


def check_disk(disk: DiskSettings) -> None:
    """Check that the path is or can become a writable folder, and that the capacity fits there."""
    folder = check_folder("disk.path", disk.path)
    space = os.statvfs(folder)
    free_bytes = space.f_bavail * space.f_frsize
    held_bytes = occupied_bytes(Path(disk.path))
    if disk.capacity > free_bytes + held_bytes:
        held = f" besides the {approximate_size(held_bytes)} kept there" if held_bytes else ""
        raise InvalidSettings(
            f"disk.capacity: {approximate_size(disk.capacity)} does not fit in {disk.path}, which "
            f"has {approximate_size(free_bytes)} free{held}; make it smaller or free some space"
        )


def check_shared(shared: SharedSettings) -> None:
    """Check the folder as `check_folder` does, and that its mount answers in time."""
    try:
        within(_MOUNT_S, lambda: check_folder("shared.path", shared.path), lambda _: None)
    except TimeoutError as error:
        raise InvalidSettings(
            f"shared.path: {shared.path}: {error}; check that it is mounted and that its server "
            "is up, or remove the tier"
        ) from error


def check_folder(setting: str, path: str) -> Path:
    """Check that the path is or can become a writable folder; return its part that exists."""
    folder = _nearest_existing(Path(path))
    if not folder.is_dir():
        below = "" if folder == Path(path) else f" and cannot become one: {folder} is a file"
        raise InvalidSettings(f"{setting}: {path} is not a folder{below}; name another path")
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise InvalidSettings(
            f"{setting}: {path} is not writable ({error.strerror}); give this user the "
            "right to write there, or name another path"
        ) from error
    return folder


def occupied_bytes(folder: Path) -> int:
    """Return the bytes that the files below `folder` take on the device, without holes."""
    found = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                found += os.lstat(os.path.join(path, name)).st_blocks * 512
            except FileNotFoundError:  # removed in the meantime
                continue
    return found


def cgroup_limit_bytes(probes: Probes) -> int | None:
    """Return the tightest memory limit from this process's cgroup up to the root, or None."""
    limits = []
    for file in _limit_files(probes):
        try:
            text = file.read_text().strip()
        except OSError:  # a file of the other cgroup version, or of the root group
            continue
        if text.isdecimal() and int(text) < _UNLIMITED_BYTES:
            limits.append(int(text))
    return min(limits, default=None)


def _limit_files(probes: Probes) -> Iterator[Path]:
    """Yield the limit files of both cgroup versions; in a container the root's own ones count."""
    try:
        lines = probes.membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            for root in (probes.cgroup_root, probes.cgroup_root / "unified"):
                yield from _upwards(root, group, "memory.max")
        elif "memory" in controllers.split(","):
            root = probes.cgroup_root / controllers
            yield from _upwards(root, group, "memory.limit_in_bytes")


def _upwards(root: Path, group: str, name: str) -> Iterator[Path]:
    parts = [part for part in group.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        yield root.joinpath(*parts[:depth], name)


def memory_bytes(probes: Probes) -> tuple[int | None, int | None]:
    """Return the machine's total and available memory; None if the kernel does not report it."""
    try:
        lines = probes.meminfo.read_text().splitlines()
    except OSError:
        return None, None
    kibibytes = {
        name: int(rest.split()[0])
        for name, _, rest in (line.partition(":") for line in lines)
        if name in ("MemTotal", "MemAvailable")
    }
    found = [kibibytes.get(name) for name in ("MemTotal", "MemAvailable")]
    total, available = (None if number is None else number * 1024 for number in found)
    return total, available


def _nearest_existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
