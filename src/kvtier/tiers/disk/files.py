"""The system calls of the disk tier, behind one seam.

Why a seam: a test must be able to make any single call fail (EIO, ENOSPC, a short write)
and see a miss instead of an error. It is one call thick, so that nothing else can hide in it.
"""

import errno
import os
from collections.abc import Sequence
from typing import Protocol

from kvtier.tiers.base import Buffer


class FileIO(Protocol):
    """What the disk tier asks of the operating system. Every method may raise OSError."""

    def open(self, name: str, flags: int, folder_fd: int) -> int:
        """Open `name` inside the open folder, mode 0600; returns a descriptor."""
        ...

    def close(self, fd: int) -> None:
        """Give a descriptor back."""
        ...

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Fill `buffers` from `offset`; returns bytes read, 0 at the end of the file."""
        ...

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write `buffers` at `offset`; returns bytes written."""
        ...

    def read(self, fd: int, size: int) -> bytes:
        """At most `size` bytes from the current position, empty at the end."""
        ...

    def write(self, fd: int, data: bytes) -> int:
        """Write at the current position; returns bytes written."""
        ...

    def size(self, fd: int) -> int:
        """Bytes of an open file."""
        ...

    def allocate(self, fd: int, size: int) -> None:
        """Reserve space for the first `size` bytes and make the file at least as long."""
        ...

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file to `size` bytes."""
        ...

    def sync(self, fd: int) -> None:
        """Make data and the size of a file durable; of a folder, its names."""
        ...

    def rename(self, old: str, new: str, folder_fd: int) -> None:
        """Give `old` the name `new` at once, replacing what had it."""
        ...

    def unlink(self, name: str, folder_fd: int) -> None:
        """Remove a name."""
        ...


class OsFiles:
    """The real thing: each method is one call of `os`."""

    # Arrays are buffers to the type checker from Python 3.12 on only.

    def open(self, name: str, flags: int, folder_fd: int) -> int:
        """See FileIO."""
        return os.open(name, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=folder_fd)

    def close(self, fd: int) -> None:
        """See FileIO."""
        os.close(fd)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """See FileIO."""
        return os.preadv(fd, buffers, offset)  # type: ignore[arg-type]  # see above

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """See FileIO."""
        return os.pwritev(fd, buffers, offset)  # type: ignore[arg-type]  # see above

    def read(self, fd: int, size: int) -> bytes:
        """See FileIO."""
        return os.read(fd, size)

    def write(self, fd: int, data: bytes) -> int:
        """See FileIO."""
        return os.write(fd, data)

    def size(self, fd: int) -> int:
        """See FileIO."""
        return os.fstat(fd).st_size

    def allocate(self, fd: int, size: int) -> None:
        """See FileIO. Where the file system cannot reserve, the file is only made long."""
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            os.ftruncate(fd, size)

    def truncate(self, fd: int, size: int) -> None:
        """See FileIO."""
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """See FileIO. On a folder fdatasync is fsync."""
        os.fdatasync(fd)

    def rename(self, old: str, new: str, folder_fd: int) -> None:
        """See FileIO."""
        os.rename(old, new, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)

    def unlink(self, name: str, folder_fd: int) -> None:
        """See FileIO."""
        os.unlink(name, dir_fd=folder_fd)
