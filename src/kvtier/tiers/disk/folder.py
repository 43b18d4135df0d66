"""The folder of a slab: its lock, its manifest and its small files.

Every name is resolved against the descriptor of the folder that was locked. If the folder is
removed and created again while the tier is open, calls fail; they never touch the new folder,
which another process may have locked.

Invariant: while a DiskFolder is open, no other process has the folder open.
"""

import errno
import fcntl
import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

import msgspec

from kvtier.blocks.key import KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.clock import unique_id
from kvtier.errors import InvalidSettings
from kvtier.tiers.files import (
    MANIFEST_NAME,
    SystemCalls,
    manifest_format,
    open_folder,
    remove_if_possible,
    unusable,
)

SETTING: Final = "disk.path"
LOCK_NAME: Final = "kvtier.lock"
LOG_NAME: Final = "log"
CHECKPOINT_NAME: Final = "checkpoint"
SEGMENT_PREFIX: Final = "segment-"
FORMAT: Final = 1
_TEMPORARY = ".kvtier-temporary-"

OnMismatch = Literal["refuse", "replace"]
"""What happens to a slab that does not fit: an error at start, or deletion."""

_open_folders: "weakref.WeakSet[DiskFolder]" = weakref.WeakSet()


def _close_in_child() -> None:
    """Close all folders in a forked child.

    The lock belongs to the open file that parent and child share: a child that kept it open
    would keep the folder locked after its parent was killed.
    """
    for folder in list(_open_folders):
        folder.close()


os.register_at_fork(after_in_child=_close_in_child)


class DiskFolder:
    """An open folder, locked for this process; `lock_folder` creates one."""

    def __init__(self, path: Path, fd: int, lock_fd: int, files: SystemCalls) -> None:
        self.path = path
        self.fd = fd
        self.files = files
        self._lock_fd = lock_fd
        _open_folders.add(self)

    def open_file(self, name: str, flags: int) -> int:
        """Open a file in the folder and return its descriptor. Raises OSError."""
        return self.files.open(name, flags, self.fd)

    def names(self) -> list[str]:
        """Return the names in the folder, sorted."""
        return sorted(os.listdir(self.fd))

    def file_bytes(self, name: str) -> int:
        """Return the length of a file, 0 if it does not exist."""
        try:
            return os.stat(name, dir_fd=self.fd).st_size
        except OSError:
            return 0

    def occupied_bytes(self) -> int:
        """Return the bytes that the files of the folder occupy on the device."""
        total = 0
        for name in self.names():
            total += os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_blocks * 512
        return total

    def read(self, name: str) -> bytes | None:
        """Read a whole file; return None if it does not exist. Raises OSError."""
        try:
            fd = self.open_file(name, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return read_to_end(self.files, fd)
        finally:
            self.files.close(fd)

    def replace(self, name: str, parts: Iterable[bytes]) -> None:
        """Write a file atomically and durably, replacing the old one. Raises OSError."""
        temporary = self.temporary_name()
        fd = self.open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            try:
                for part in parts:
                    self._write_all(fd, part)
                self.files.sync_data(fd)
            finally:
                self.files.close(fd)
            self.files.rename(temporary, name, self.fd)
        except OSError:
            self.remove(temporary)
            raise
        self.files.sync_data(self.fd)

    def _write_all(self, fd: int, data: bytes) -> None:
        written = self.files.write(fd, data)
        while written < len(data):
            step = self.files.write(fd, data[written:])
            if step == 0:
                raise OSError(errno.ENOSPC, "nothing written")
            written += step

    def remove(self, name: str) -> None:
        """Remove a file. Nothing happens if it is gone or cannot be removed."""
        remove_if_possible(self.files, self.fd, name)

    def remove_temporaries(self) -> None:
        """Remove temporary files that an interrupted process left behind."""
        for name in self.names():
            if name.startswith(_TEMPORARY):
                self.remove(name)

    def temporary_name(self) -> str:
        """Return a unique name; a file left behind under it is removed by the next start."""
        return _TEMPORARY + unique_id()

    def close(self) -> None:
        """Release the lock and close the descriptors. Idempotent."""
        for fd in (self._lock_fd, self.fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self.fd = -1


def read_to_end(files: SystemCalls, fd: int) -> bytes:
    """Read an open file from its current position to its end."""
    parts = []
    while part := files.read(fd, 1 << 22):
        parts.append(part)
    return b"".join(parts)


def lock_folder(path: Path, files: SystemCalls) -> DiskFolder:
    """Create (mode 0700), open and lock the folder.

    Raises InvalidSettings naming `disk.path` if the parent does not exist, the path is not a
    folder or not writable, or another process uses it.
    """
    fd = open_folder(SETTING, path)
    try:
        lock_fd = _lock(path, fd)
    except BaseException:
        os.close(fd)
        raise
    return DiskFolder(path, fd, lock_fd, files)


def check_unused(path: Path) -> None:
    """Raise InvalidSettings, as `lock_folder` would, if another process has the folder open.

    Commands call it to fail early, before they start an engine. It changes nothing.
    """
    try:
        fd = os.open(path / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # The folder was never used or is not usable; opening it gives the reason.
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _in_use(path, fd) from error
    finally:
        os.close(fd)


def _lock(path: Path, folder_fd: int) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = os.open(LOCK_NAME, flags, 0o600, dir_fd=folder_fd)
    except OSError as error:
        raise unusable(SETTING, path, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        refusal = _in_use(path, fd)
        os.close(fd)
        raise refusal from error
    except OSError as error:
        os.close(fd)
        raise unusable(SETTING, path, error) from error
    return fd


def _in_use(path: Path, lock_fd: int) -> InvalidSettings:
    holder = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
    return InvalidSettings(
        f"{SETTING}: {path} is in use by process {holder}; "
        "stop it or give this engine a folder of its own"
    )


class SlabManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `manifest.json`: what the bytes of the slab mean.

    A slab of another key space holds bytes that would be wrong for this engine. Slot numbers
    mean nothing without `segment_slots`.
    """

    format: int
    block_bytes: int
    slot_bytes: int
    segment_slots: int
    space: KeySpace


def adopt_manifest(
    folder: DiskFolder,
    layout: BlockLayout,
    space: KeySpace,
    segment_slots: int,
    on_mismatch: OnMismatch,
) -> SlabManifest:
    """Return the manifest that is found if it fits, or else a new one for an empty slab.

    `segment_slots` is used for a new slab only. Raises OSError, and InvalidSettings with the
    fields that differ if the slab that is found does not fit and may not be replaced.
    """
    wanted = SlabManifest(
        format=FORMAT,
        block_bytes=layout.block_bytes,
        slot_bytes=layout.slot_bytes,
        segment_slots=segment_slots,
        space=space,
    )
    raw = folder.read(MANIFEST_NAME)
    if raw is not None:
        found = _compare(wanted, raw)
        if isinstance(found, SlabManifest):
            return found
        if on_mismatch == "refuse":
            raise InvalidSettings(
                f"disk.path: {folder.path} holds a slab that does not fit this engine "
                f"({found}); name another folder, or set "
                "disk.on_mismatch: replace to delete it"
            )
        # The manifest is replaced last: a half-erased slab is still recognized as a slab.
        for name in _slab_names(folder):
            folder.remove(name)
    elif unknown := _slab_names(folder):
        raise InvalidSettings(
            f"disk.path: {folder.path} has no {MANIFEST_NAME} but files named as a slab's "
            f"({', '.join(unknown[:3])}); name an empty folder or remove them"
        )
    folder.replace(MANIFEST_NAME, [msgspec.json.encode(wanted, order="sorted")])
    return wanted


def _compare(wanted: SlabManifest, raw: bytes) -> SlabManifest | str:
    """Return the manifest in `raw` if it fits, or else what differs."""
    try:
        version = manifest_format(raw)
        if version != FORMAT:
            return f"format: {FORMAT} != {version}"
        found = msgspec.json.decode(raw, type=SlabManifest)
    except (InvalidSettings, msgspec.MsgspecError, UnicodeDecodeError):
        return f"{MANIFEST_NAME} cannot be read"
    sizes = [
        f"{name}: {getattr(wanted, name)} != {getattr(found, name)}"
        for name in ("block_bytes", "slot_bytes")
        if getattr(wanted, name) != getattr(found, name)
    ]
    differences = sizes + wanted.space.differing(found.space)
    return "; ".join(differences) if differences else found


def _slab_names(folder: DiskFolder) -> list[str]:
    """Return the names of files that only a slab has, except the manifest."""
    return [
        name
        for name in folder.names()
        if name in (CHECKPOINT_NAME, LOG_NAME) or name.startswith(SEGMENT_PREFIX)
    ]
