"""A file system with injected failures, for the tests of a store in a folder."""

import errno
import os
import threading
from collections.abc import Sequence

from kvtier.tiers.base import Buffer
from kvtier.tiers.files import FolderEntry, SystemCalls
from tests.tiers.broken import BadDay


class BrokenFiles(BadDay, SystemCalls):
    """System calls with injected failures; those named in `hung` wait for `release`."""

    def __init__(self) -> None:
        super().__init__()
        self.hung: set[str] = set()
        """The names of the calls that wait for `release`."""
        self.hangs = threading.Event()
        self.release = threading.Event()
        self.refuses_direct = False
        """Whether O_DIRECT fails with EINVAL, as for memory that a device cannot reach."""
        self.flags: list[int] = []
        """The flags of every `open`."""

    def _begin(self, name: str) -> None:
        if name in self.hung:
            self.hangs.set()
            self.release.wait()
        super()._begin(name)

    def _check_direct(self, fd: int) -> None:
        if self.refuses_direct and is_direct(fd):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def open(self, name: str, flags: int, folder_fd: int) -> int:
        self._begin("open")
        self.flags.append(flags)
        return super().open(name, flags, folder_fd)

    def close(self, fd: int) -> None:
        super().close(fd)
        self._begin("close")

    def stat_open(self, fd: int) -> os.stat_result:
        self._begin("stat_open")
        return super().stat_open(fd)

    def stat(self, name: str, folder_fd: int) -> os.stat_result:
        self._begin("stat")
        return super().stat(name, folder_fd)

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._begin("preadv")
        self._check_direct(fd)
        kept = self._cut("preadv", buffers)
        return super().preadv(fd, kept, offset) if kept else 0

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._begin("pwritev")
        self._check_direct(fd)
        kept = self._cut("pwritev", buffers)
        return super().pwritev(fd, kept, offset) if kept else 0

    def use_page_cache(self, fd: int) -> None:
        self._begin("use_page_cache")
        super().use_page_cache(fd)

    def sync_data(self, fd: int) -> None:
        self._begin("sync_data")
        super().sync_data(fd)

    def sync(self, fd: int) -> None:
        self._begin("sync")
        super().sync(fd)

    def rename(self, old: str, new: str, folder_fd: int) -> None:
        self._begin("rename")
        super().rename(old, new, folder_fd)

    def rename_exclusive(self, old: str, new: str, folder_fd: int) -> None:
        self._begin("rename_exclusive")
        super().rename_exclusive(old, new, folder_fd)

    def link(self, old: str, new: str, folder_fd: int) -> None:
        self._begin("link")
        super().link(old, new, folder_fd)

    def unlink(self, name: str, folder_fd: int) -> None:
        self._begin("unlink")
        super().unlink(name, folder_fd)

    def make_folder(self, name: str, folder_fd: int) -> None:
        self._begin("make_folder")
        super().make_folder(name, folder_fd)

    def remove_folder(self, name: str, folder_fd: int) -> None:
        self._begin("remove_folder")
        super().remove_folder(name, folder_fd)

    def entries(self, name: str, folder_fd: int) -> list[FolderEntry]:
        self._begin("entries")
        return super().entries(name, folder_fd)


class NetworkFiles(BrokenFiles):
    """A file system without exclusive renames, as the kernel presents it.

    The kernel itself refuses a taken name; only a free one shows that the file system cannot.
    """

    def rename_exclusive(self, old: str, new: str, folder_fd: int) -> None:
        try:
            self.stat(new, folder_fd)
        except FileNotFoundError:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def is_direct(fd: int) -> bool:
    """Return whether O_DIRECT is set for a descriptor."""
    with open(f"/proc/self/fdinfo/{fd}") as info:
        flags = next(line for line in info if line.startswith("flags"))
    return bool(int(flags.split()[1], 8) & os.O_DIRECT)
