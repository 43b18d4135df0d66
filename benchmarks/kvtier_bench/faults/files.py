"""The system calls of a shared folder with injected faults, for use below `PosixStore`.

Torn writes, truncated or over-long files and removed folders damage the real files, so that every
reader sees the damage. A bit flip changes the bytes in transit. A stale listing shows removed
files, hides existing ones, and answers ESTALE.

Invariant: while no fault is armed, each method is the plain system call.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from kvtier.tiers.base import Buffer
from kvtier.tiers.files import FolderEntry, SystemCalls
from kvtier_bench.faults.faults import CallKind, FaultKind, Faults, refusal

_SEGMENT: Final = ".kvt"
_YEAR_S: Final = 365 * 86_400
_EXTRA: Final = b"\x5a" * 4096


class FaultyFiles(SystemCalls):
    """`SystemCalls` below `root` with injected faults. Safe from any thread. Raises OSError."""

    def __init__(self, faults: Faults, root: Path) -> None:
        self._faults = faults
        self._root = root
        self._listed: dict[str, list[FolderEntry]] = {}
        self._stated: dict[str, os.stat_result] = {}
        self._written: set[int] = set()

    def open(self, name: str, flags: int, folder_fd: int) -> int:
        """Open a file; may first damage an existing one."""
        creates = bool(flags & os.O_CREAT)
        self._begin(
            CallKind.OPENS | CallKind.NAMES | (CallKind.WRITES if creates else CallKind.OPENS)
        )
        if not creates:
            if self._faults.strikes(FaultKind.STALE_LISTING):
                raise refusal((errno.ESTALE, errno.ENOENT)[self._faults.pick(2)])
            if name.endswith(_SEGMENT):
                self._damage(name, folder_fd)
        fd = super().open(name, flags, folder_fd)
        if creates:
            self._written.add(fd)
        return fd

    def close(self, fd: int) -> None:
        """Close a file; a written one may get another length."""
        if fd in self._written:
            self._written.discard(fd)
            with contextlib.suppress(OSError):
                self._cut_or_grow(fd)
        super().close(fd)
        self._begin(CallKind.WRITES)

    def stat_open(self, fd: int) -> os.stat_result:
        """Return the status of an open file; may be refused."""
        self._begin(CallKind.MOVES)
        return super().stat_open(fd)

    def stat(self, name: str, folder_fd: int) -> os.stat_result:
        """Return a file's status, which may be that of a removed file."""
        self._begin(CallKind.NAMES)
        if name in self._stated and self._faults.strikes(FaultKind.STALE_LISTING):
            return self._stated[name]
        result = super().stat(name, folder_fd)
        self._stated[name] = result
        return result

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Read; may return fewer bytes than requested, or wrong ones."""
        self._begin(CallKind.MOVES)
        if self._faults.strikes(FaultKind.PARTIAL):
            buffers = self._shortened(buffers)
        moved = super().preadv(fd, buffers, offset)
        if moved and self._faults.strikes(FaultKind.BIT_FLIP):
            flip(buffers[0][:moved], self._faults)
        return moved

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write; may write fewer bytes than requested or than it returns, or wrong ones."""
        self._begin(CallKind.WRITES | CallKind.MOVES)
        if self._faults.strikes(FaultKind.PARTIAL):
            buffers = self._shortened(buffers)
        if self._faults.strikes(FaultKind.BIT_FLIP):
            buffers = [each.copy() for each in buffers]
            flip(buffers[self._faults.pick(len(buffers))], self._faults)
        if self._faults.strikes(FaultKind.TORN_WRITE):
            return self._tear(fd, buffers, offset)
        return super().pwritev(fd, buffers, offset)

    def sync_data(self, fd: int) -> None:
        """Sync a file's data; may be refused."""
        self._begin(CallKind.WRITES)
        super().sync_data(fd)

    def sync(self, fd: int) -> None:
        """Sync a file; may be refused."""
        self._begin(CallKind.WRITES)
        super().sync(fd)

    def rename(self, old: str, new: str, folder_fd: int) -> None:
        """Rename a file; may be refused."""
        self._begin(CallKind.WRITES | CallKind.NAMES)
        super().rename(old, new, folder_fd)

    def rename_exclusive(self, old: str, new: str, folder_fd: int) -> None:
        """Rename a file unless `new` exists; may be refused, or see a removed file as existing."""
        self._begin(CallKind.WRITES | CallKind.NAMES)
        if self._faults.strikes(FaultKind.STALE_LISTING):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        super().rename_exclusive(old, new, folder_fd)

    def link(self, old: str, new: str, folder_fd: int) -> None:
        """Link a file; may be refused."""
        self._begin(CallKind.WRITES | CallKind.NAMES)
        super().link(old, new, folder_fd)

    def unlink(self, name: str, folder_fd: int) -> None:
        """Unlink a file; may be refused."""
        self._begin(CallKind.NAMES)
        super().unlink(name, folder_fd)

    def make_folder(self, name: str, folder_fd: int) -> None:
        """Make a folder; may be refused."""
        self._begin(CallKind.WRITES | CallKind.NAMES)
        super().make_folder(name, folder_fd)

    def remove_folder(self, name: str, folder_fd: int) -> None:
        """Remove a folder; may be refused."""
        self._begin(CallKind.NAMES)
        super().remove_folder(name, folder_fd)

    def entries(self, name: str, folder_fd: int) -> list[FolderEntry]:
        """Return the entries of a folder, which may be outdated."""
        self._begin(CallKind.OPENS | CallKind.NAMES)
        if name in self._listed and self._faults.strikes(FaultKind.STALE_LISTING):
            return self._listed[name]
        found = super().entries(name, folder_fd)
        self._listed[name] = found
        return found

    def _begin(self, call: CallKind) -> None:
        self._faults.inject(call)
        if self._faults.strikes(FaultKind.FOLDER_REMOVED):
            self._remove_a_folder()

    def _remove_a_folder(self) -> None:
        """Remove the blocks of the key spaces, the key spaces, or everything with the root."""
        spaces = [each for each in self._root.glob("*") if each.is_dir()]
        choice = self._faults.pick(8)
        for space in spaces:
            shutil.rmtree(space / "blocks" if choice < 5 else space, ignore_errors=True)
        if choice == 7:
            shutil.rmtree(self._root, ignore_errors=True)

    def _damage(self, name: str, folder_fd: int) -> None:
        """Damage the file that is about to be read, if such a fault strikes."""
        with contextlib.suppress(OSError):
            if self._faults.strikes(FaultKind.CLOCK_STEP):
                at_s = self._faults.pick(60 * _YEAR_S)
                os.utime(name, (at_s, at_s), dir_fd=folder_fd)
            fd = os.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=folder_fd)
            try:
                self._cut_or_grow(fd)
            finally:
                os.close(fd)

    def _cut_or_grow(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        if size and self._faults.strikes(FaultKind.TRUNCATED):
            os.ftruncate(fd, self._faults.pick(size))
        if self._faults.strikes(FaultKind.OVER_LONG):
            os.pwrite(fd, _EXTRA[: 1 + self._faults.pick(len(_EXTRA))], size)

    def _shortened(self, buffers: Sequence[Buffer]) -> list[Buffer]:
        left = 1 + self._faults.pick(sum(map(len, buffers)))
        kept: list[Buffer] = []
        for buffer in buffers:
            kept.append(buffer[:left])
            left -= len(kept[-1])
        return [buffer for buffer in kept if len(buffer)]

    def _tear(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write a part, leave the rest as zeros or beyond the end, and report all as written."""
        size = sum(map(len, buffers))
        super().pwritev(fd, self._shortened(buffers), offset)
        if self._faults.pick(2):
            os.ftruncate(fd, offset + size)
        return size


def flip(buffer: Buffer, faults: Faults) -> None:
    """Flip one random bit of `buffer`."""
    buffer[faults.pick(len(buffer))] ^= np.uint8(1 << faults.pick(8))
