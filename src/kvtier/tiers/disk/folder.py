"""The folder of a slab: its lock, its manifest, its small files.

Every name is resolved against the descriptor of the folder that was locked. If the folder is
removed and made anew while the tier is open, calls fail; they never touch the new folder,
which another process may have locked.

Invariant: while a Folder is open, no other process has it open.
"""

import errno
import fcntl
import os
import weakref
from collections.abc import Iterable
from pathlib import Path

from kvtier.clock import unique_id
from kvtier.errors import InvalidSettings
from kvtier.tiers import paths
from kvtier.tiers.disk.files import FileIO

SETTING = "disk.path"
LOCK_NAME = "kvtier.lock"
_TEMPORARY = ".kvtier-temporary-"

_open_folders: "weakref.WeakSet[Folder]" = weakref.WeakSet()


def _leave_to_parent() -> None:
    """In a forked child: a lock that the child keeps open would outlive a killed parent."""
    for folder in list(_open_folders):
        folder.close()


os.register_at_fork(after_in_child=_leave_to_parent)


class Folder:
    """An open folder, locked for this process. `open_folder` makes one."""

    def __init__(self, path: Path, fd: int, lock_fd: int, files: FileIO) -> None:
        self.path = path
        self.fd = fd
        self.files = files
        self._lock_fd = lock_fd
        _open_folders.add(self)

    def open_file(self, name: str, flags: int) -> int:
        """A descriptor of a file in the folder. Raises OSError."""
        return self.files.open(name, flags, self.fd)

    def names(self) -> list[str]:
        """Names in the folder, sorted."""
        return sorted(os.listdir(self.fd))

    def file_bytes(self, name: str) -> int:
        """Length of a file, 0 where there is none."""
        try:
            return os.stat(name, dir_fd=self.fd).st_size
        except OSError:
            return 0

    def occupied_bytes(self) -> int:
        """Bytes the files of the folder occupy on the device."""
        total = 0
        for name in self.names():
            total += os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_blocks * 512
        return total

    def read(self, name: str) -> bytes | None:
        """A whole small file, None where there is none. Raises OSError."""
        try:
            fd = self.open_file(name, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            parts = []
            while part := self.files.read(fd, 1 << 22):
                parts.append(part)
            return b"".join(parts)
        finally:
            self.files.close(fd)

    def replace(self, name: str, parts: Iterable[bytes]) -> None:
        """Write a file that appears whole or not at all, and durably. Raises OSError."""
        temporary = _TEMPORARY + unique_id()
        fd = self.open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            try:
                for part in parts:
                    self._write_all(fd, part)
                self.files.sync(fd)
            finally:
                self.files.close(fd)
            self.files.rename(temporary, name, self.fd)
        except OSError:
            self.remove(temporary)
            raise
        self.files.sync(self.fd)

    def _write_all(self, fd: int, data: bytes) -> None:
        written = self.files.write(fd, data)
        while written < len(data):
            step = self.files.write(fd, data[written:])
            if step == 0:
                raise OSError(errno.ENOSPC, "nothing written")
            written += step

    def remove(self, name: str) -> None:
        """Remove a file; nothing happens where it is gone or cannot be removed."""
        try:
            self.files.unlink(name, self.fd)
        except OSError:
            pass

    def remove_temporaries(self) -> None:
        """Remove what an interrupted `replace` left."""
        for name in self.names():
            if name.startswith(_TEMPORARY):
                self.remove(name)

    def temporary_name(self) -> str:
        """A name nobody else has, removed by the next start if it is left behind."""
        return _TEMPORARY + unique_id()

    def close(self) -> None:
        """Release the lock and the descriptors. Idempotent."""
        for fd in (self._lock_fd, self.fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self.fd = -1


def open_folder(path: Path, files: FileIO) -> Folder:
    """Make (mode 0700), open and lock the folder.

    Raises InvalidSettings naming `disk.path`: no parent, not a folder, not writable, in use.
    """
    fd = paths.open_folder(SETTING, path)
    try:
        lock_fd = _lock(path, fd)
    except BaseException:
        os.close(fd)
        raise
    return Folder(path, fd, lock_fd, files)


def check_unused(path: Path) -> None:
    """Raise InvalidSettings, as `open_folder` would, if another process has the folder open.

    For a command that wants to say so before it starts an engine. Changes nothing.
    """
    try:
        fd = os.open(path / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return  # never used, or not usable: others say why
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
        raise paths.unusable(SETTING, path, error) from error
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
        raise paths.unusable(SETTING, path, error) from error
    return fd


def _in_use(path: Path, lock_fd: int) -> InvalidSettings:
    holder = os.pread(lock_fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
    return InvalidSettings(
        f"{SETTING}: {path} is in use by process {holder}; "
        "stop it or give this engine a folder of its own"
    )
