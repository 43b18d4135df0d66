"""What a folder is mounted from, and what that means for a tier in it.

Invariant: a kind of file system that is not listed here is not judged.
"""

import os
import re
from pathlib import Path
from typing import Final, NamedTuple

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


class Mount(NamedTuple):
    """One line of the kernel's table."""

    point: str
    kind: str
    """As `ext4`, `nfs4`, `fuse.s3fs`."""
    options: frozenset[str]


def mount_of(path: Path, table: Path = _MOUNTS) -> Mount | None:
    """Where `path` is; None where the kernel does not tell. Raises OSError for a dead mount."""
    try:
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    found = None
    for line in lines:
        mount = _parse(line)
        # Of two mounts on one point the later one is seen.
        if mount is None or not _is_below(real, mount.point):
            continue
        if found is None or len(mount.point) >= len(found.point):
            found = mount
    return found


def shared_warning(mount: Mount) -> str | None:
    """Why a shared folder should not be here, and what to do; None where nothing is known."""
    kind = mount.kind
    if kind in _MEMORY:
        return "this is the memory of one machine: no other sees it and a restart empties it; " + (
            "mount storage that all nodes see"
        )
    if kind == "overlay":
        return (
            "this is a container's own layer: no other sees it and it goes with the container; "
            + ("mount a volume there")
        )
    if kind in _BUCKETS:
        return (
            "this is a bucket behind a file system, without exclusive names and slow to list; "
            + ("name the bucket itself with objectstore.url")
        )
    if kind in ("nfs", "nfs4") and not _forgets_absence(mount):
        return (
            "NFS remembers for up to a minute that a file was not there, so that blocks of other "
            "nodes are seen that much later than shared.recheck says; mount it with "
            "lookupcache=positive"
        )
    return None


def disk_warning(mount: Mount) -> str | None:
    """The same for a disk tier."""
    kind = mount.kind
    if kind in _MEMORY:
        return "this is memory, which ram.capacity uses better; name a folder on a drive"
    if kind == "overlay":
        return "this is a container's own layer: slow, and gone with the container; mount a volume"
    if kind in _NETWORK or kind.startswith("fuse."):
        return (
            "this is not a local drive, and one engine only may use the folder; name it with "
            "shared.path, so that all engines share what it holds"
        )
    return None


def is_local(mount: Mount) -> bool:
    """Whether only engines of this host see it, as far as is known."""
    return mount.kind in ("ext4", "ext3", "xfs", "btrfs", "zfs", "f2fs")


def _forgets_absence(mount: Mount) -> bool:
    return any(
        option in mount.options
        for option in ("lookupcache=pos", "lookupcache=positive", "lookupcache=none", "noac")
    )


def _parse(line: str) -> Mount | None:
    """`36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda rw,errors=continue`."""
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
