"""Checks whether the places in the settings can do what their tiers need.

Wherever possible, the checks use the code that opens the tier. Invariants: nothing is left behind
and no folder is created; for a folder that does not exist yet its parent is checked. File systems
that are not listed here cause no warning.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from kvtier.blocks.checksum import load_key
from kvtier.clock import Clock, MonotonicClock, unique_id, wall_s
from kvtier.diagnosis.report import Check, failed, fine, warned
from kvtier.errors import InvalidSettings
from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.spaces import FileKind, StoreLayout, space_names
from kvtier.settings import DiskSettings, ObjectStoreSettings, SharedSettings, machine
from kvtier.settings.sizes import approximate_size
from kvtier.tiers.disk import check_unused
from kvtier.tiers.disk.folder import DiskFolder
from kvtier.tiers.disk.slab import folder_supports_direct_io
from kvtier.tiers.files import SystemCalls, remove_if_possible
from kvtier.tiers.objectstore import store as objects
from kvtier.tiers.shared.folder import ProbedFolder, open_root
from kvtier.tiers.shared.store import TemporaryNames

_MOUNTS: Final = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")
_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_NETWORK: Final = frozenset(
    {"nfs", "nfs4", "ceph", "lustre", "cifs", "smb3", "9p", "gpfs", "beegfs"}
)
_BUCKETS: Final = frozenset(
    f"fuse.{name}"
    for name in ("s3fs", "gcsfuse", "goofys", "rclone", "mountpoint-s3", "blobfuse", "blobfuse2")
)
SKEW_S: Final = 5.0
"""Tolerated difference between the store's clock and this host's. Only displayed ages suffer."""
ORPHAN_S: Final = 3600.0
"""Age from which a temporary file counts as left behind; no write takes an hour."""
LOOK_FILES: Final = 50_000
LOOK_S: Final = 3.0
"""Bounds of the search for temporary files; walking a large store is left to `kvtier evict`."""
_FREE_SHARE: Final = 0.05
_INODES: Final = 1000


class Mount(NamedTuple):
    """A mount from the kernel's table."""

    point: str
    kind: str
    """Type of the file system, such as `ext4`, `nfs4` or `fuse.s3fs`."""
    options: frozenset[str]


def mount_of(path: Path, table: Path = _MOUNTS) -> Mount | None:
    """Return the mount that contains `path`; None if unknown. Raises OSError for a dead mount."""
    try:
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    found = None
    for line in lines:
        mount = _parse(line)
        # Of two mounts on one point, the later one is visible.
        if mount is None or not _is_below(real, mount.point):
            continue
        if found is None or len(mount.point) >= len(found.point):
            found = mount
    return found


def shared_warning(mount: Mount) -> str | None:
    """Return why a shared folder should not be on this mount and the fix; None if it is fine."""
    kind = mount.kind
    if kind in _MEMORY:
        return (
            "this is the memory of one machine, which others cannot see and a restart empties; "
            "mount storage that all nodes can see"
        )
    if kind == "overlay":
        return (
            "this is a container's own layer, which others cannot see and which is removed with "
            "the container; mount a volume there"
        )
    if kind in _BUCKETS:
        return (
            "this is a bucket behind a file system, without exclusive names and slow to list; "
            "name the bucket itself with objectstore.url"
        )
    if kind in ("nfs", "nfs4") and not _rechecks_absence(mount):
        return (
            "NFS caches for up to a minute that a file does not exist, so blocks of other nodes "
            "are found that much later than shared.recheck says; mount it with "
            "lookupcache=positive"
        )
    return None


def disk_warning(mount: Mount) -> str | None:
    """Return why a disk tier should not be on this mount and the fix; None if it is fine."""
    kind = mount.kind
    if kind in _MEMORY:
        return "this is memory, which ram.capacity uses better; name a folder on a drive"
    if kind == "overlay":
        return (
            "this is a container's own layer, which is slow and removed with the container; mount "
            "a volume"
        )
    if kind in _NETWORK or kind.startswith("fuse."):
        return (
            "this is not a local drive, and only one engine may use the folder; name it with "
            "shared.path, so that all engines share its blocks"
        )
    return None


def is_local(mount: Mount) -> bool:
    """Return True if the file system is known to be visible to this host only."""
    return mount.kind in ("ext4", "ext3", "xfs", "btrfs", "zfs", "f2fs")


def _rechecks_absence(mount: Mount) -> bool:
    return any(
        option in mount.options
        for option in ("lookupcache=pos", "lookupcache=positive", "lookupcache=none", "noac")
    )


def _parse(line: str) -> Mount | None:
    """Parse a line like `36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda rw`."""
    left, separator, right = line.partition(" - ")
    fields, tail = left.split(" "), right.split(" ")
    if not separator or len(fields) < 6 or len(tail) < 3:
        return None
    options = frozenset((*fields[5].split(","), *tail[2].split(",")))
    return Mount(_ESCAPE.sub(_character, fields[4]), tail[0], options)


def _character(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 8))


def _is_below(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def disk_checks(disk: DiskSettings) -> Iterator[Check]:
    """Check the local drive. Raises InvalidSettings and OSError if it cannot be used."""
    path = Path(disk.path)
    folder = _nearest_existing("disk.path", path)
    machine.check_disk(disk)
    yield fine("disk.path", f"{path} can be written{_creation_note(path)}")
    yield fine("disk.capacity", f"{approximate_size(disk.capacity)} fit on the file system")
    try:
        check_unused(path)
    except InvalidSettings as error:
        yield warned("disk.path", str(error))
    if mount := mount_of(folder):
        yield _mount_check("disk.path", mount, disk_warning(mount), f"on {mount.kind}")
    yield _direct_io_check("disk.direct_io", disk.direct_io, works=_disk_has_direct(folder))
    yield _inode_check("disk.path", os.statvfs(folder))


def shared_checks(shared: SharedSettings, clock: Clock | None = None) -> Iterator[Check]:
    """Check the shared folder. Raises InvalidSettings and OSError if it cannot be used."""
    if shared.key_file is not None:
        yield key_file_check("shared.key_file", Path(shared.key_file))
    path = Path(shared.path)
    folder = _nearest_existing("shared.path", path)
    machine.check_folder("shared.path", shared.path)
    if path.exists():
        yield fine("shared.path", f"{path} can be read and written")
    else:
        text = f"{path} does not exist; the first engine creates it"
        fix = "If it should be a mount, mount it on this machine."
        yield warned("shared.path", text, fix=fix)
    if mount := mount_of(folder):
        text = f"on {mount.kind}" + (", which only engines of this host can see" * is_local(mount))
        yield _mount_check("shared.path", mount, shared_warning(mount), text)
    files, names = SystemCalls(), TemporaryNames()
    opened = open_root(folder, "auto", files, names)
    how = "exclusive renames" if opened.renames else "hard links, without exclusive renames,"
    yield fine("shared.path", f"{how} work: of two writers of one name, one wins")
    yield _direct_io_check("shared.direct_io", shared.direct_io, works=opened.direct)
    now_s, skew = _folder_clock(opened, files, names)
    yield skew_check("shared.path", skew)
    space = os.statvfs(folder)
    yield _free_space_check("shared.path", space)
    yield _inode_check("shared.path", space)
    if path.exists():
        yield _orphan_check(path, now_s, clock or MonotonicClock())


def bucket_checks(bucket: ObjectStoreSettings) -> Iterator[Check]:
    """Check the bucket with about 14 requests. Raises InvalidSettings and OSError."""
    if bucket.key_file is not None:
        yield key_file_check("objectstore.key_file", Path(bucket.key_file))
    store = objects.BucketStore(bucket.url)
    try:
        store.check()
        yield fine("objectstore.url", f"{bucket.url} can be listed, read and written")
        # `check` refuses a server without conditional writes.
        yield fine(
            "objectstore.url", "conditional writes work: of two writers of one name, one wins"
        )
        skew_s = _bucket_clock(store)
        if skew_s is not None:
            yield skew_check("objectstore.url", skew_s)
    finally:
        store.close()


def key_file_check(setting: str, path: Path) -> Check:
    """Check that the secret can be read and is valid, and that other users cannot read it."""
    try:
        load_key(path, setting)
    except InvalidSettings as error:
        return failed(setting, str(error))
    return fine(setting, f"{path} holds a secret, and other users cannot read it")


def skew_check(setting: str, skew_s: float) -> Check:
    """Check the store's clock, which is `skew_s` ahead of this machine's."""
    ahead = "ahead of" if skew_s > 0 else "behind"
    text = f"the store's clock is {abs(skew_s):.1f} s {ahead} this machine's"
    if abs(skew_s) <= SKEW_S:
        return fine(setting, text)
    return warned(
        setting,
        text,
        fix="Run a time service (chrony, ntpd) on both: ages in `kvtier inspect` are wrong by that "
        "much, and a bucket's server refuses requests that are 15 minutes off.",
    )


def _nearest_existing(setting: str, path: Path) -> Path:
    """Return `path`, or its parent if it does not exist yet. Raises InvalidSettings."""
    if path.exists():
        return path
    if not path.parent.exists():
        raise InvalidSettings(
            f"{setting}: the parent folder of {path} does not exist; create {path.parent} or mount "
            "it"
        )
    return path.parent


def _creation_note(path: Path) -> str:
    return "" if path.exists() else "; the first engine creates it"


def _mount_check(setting: str, mount: Mount, warning: str | None, text: str) -> Check:
    if warning is None:
        return fine(setting, text)
    return warned(setting, f"on {mount.kind}: {warning}")


def _direct_io_check(setting: str, wanted: str, *, works: bool) -> Check:
    if works:
        return fine(setting, "O_DIRECT works" + (", but is not used" if wanted == "never" else ""))
    text = "the file system does not support O_DIRECT"
    if wanted == "always":
        return failed(setting, text, fix=f"Set {setting} to auto.")
    return fine(setting, f"{text}: blocks go through the page cache")


def _disk_has_direct(folder: Path) -> bool:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    # No lock is taken: an engine may hold it, and the probe file has a name of its own.
    opened = DiskFolder(folder, fd, -1, SystemCalls())
    try:
        return folder_supports_direct_io(opened)
    finally:
        opened.close()


def _free_space_check(setting: str, space: os.statvfs_result) -> Check:
    free_bytes, total_bytes = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    text = f"{approximate_size(free_bytes)} of {approximate_size(total_bytes)} are free"
    if total_bytes and free_bytes < _FREE_SHARE * total_bytes:
        fix = "A full file system takes no more blocks. Bound it with `kvtier evict --high 85%`."
        return warned(setting, text, fix=fix)
    return fine(setting, text)


def _inode_check(setting: str, space: os.statvfs_result) -> Check:
    if not space.f_files:
        return fine(setting, "the file system does not count inodes")
    text = f"{space.f_favail:,} inodes are free"
    if space.f_favail < _INODES:
        fix = "Bound them with `kvtier evict --high-inodes 85%`, or remove other files."
        return warned(setting, text, fix=fix)
    return fine(setting, text)


def _folder_clock(
    opened: ProbedFolder, files: SystemCalls, names: TemporaryNames
) -> tuple[float, float]:
    """Return the file system's time and how far it is ahead, in seconds. Raises OSError."""
    name = names.next("")
    before_s = wall_s()
    fd = files.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, opened.root.fd)
    try:
        files.close(fd)
        now_s = files.stat(name, opened.root.fd).st_mtime
    finally:
        remove_if_possible(files, opened.root.fd, name)
    return now_s, now_s - (before_s + wall_s()) / 2


def _bucket_clock(store: objects.BucketStore) -> float | None:
    """Return how far the server's clock is ahead, in seconds; None if unknown. Raises OSError.

    Servers report whole seconds, so half a second is added.
    """
    name = f"doctor-{unique_id()}"
    before_s = wall_s()
    try:
        server_s = store.put(name, b"clock").modified_s
    finally:
        store.remove(name)
    if not server_s:
        return None
    skew_s = server_s + 0.5 - (before_s + wall_s()) / 2
    return 0.0 if abs(skew_s) < 1 else skew_s


def _orphan_check(path: Path, now_s: float, clock: Clock) -> Check:
    folder = FolderView(path)
    give_up_s = clock.now_s() + LOOK_S
    orphans = looked = 0
    whole = True
    try:
        layout = StoreLayout(space_names(folder))
        for entry in folder.walk("", layout.looks_into, lambda name, error: None):
            looked += 1
            old = entry.stat.modified_s < now_s - ORPHAN_S
            if old and entry.is_file and layout.kind_of(entry.name) is FileKind.TEMPORARY:
                orphans += 1
            if looked == LOOK_FILES or clock.now_s() > give_up_s:
                whole = False
                break
    finally:
        folder.close()
    among = "" if whole else f" among the first {looked:,}"
    if not orphans:
        return fine("shared.path", f"no files of crashed writers{among}")
    return warned(
        "shared.path",
        f"{orphans:,} temporary files of crashed writers{among}",
        fix="`kvtier evict` removes them while it runs, `kvtier fsck --repair` once.",
    )
