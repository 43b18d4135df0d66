"""The system calls of a shared folder on a bad day: faults below `PosixStore`.

What damages a file damages the real one, so that every reader meets it: torn writes, files
that are cut or go on behind their end, folders removed underneath. A bit flip befalls what is
moved. A stale listing shows what was removed, hides what is there, and answers ESTALE.

Invariant: while nothing is armed, each method is the system call it stands for.
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
    """`SystemCalls` below `root` under `faults`. Any thread. Raises what a file system may."""

    def __init__(self, faults: Faults, root: Path) -> None:
        self._faults = faults
        self._root = root
        self._listed: dict[str, list[FolderEntry]] = {}
        self._stated: dict[str, os.stat_result] = {}
        self._written: set[int] = set()

    def open(self, name: str, flags: int, folder_fd: int) -> int:
        """Of what exists: may damage it first."""
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
        """Of what was written: it may keep another length than it was given."""
        if fd in self._written:
            self._written.discard(fd)
            with contextlib.suppress(OSError):
                self._cut_or_grow(fd)
        super().close(fd)
        self._begin(CallKind.WRITES)

    def stat_open(self, fd: int) -> os.stat_result:
        """May be refused."""
        self._begin(CallKind.MOVES)
        return super().stat_open(fd)

    def stat(self, name: str, folder_fd: int) -> os.stat_result:
        """May be that of a file that is gone."""
        self._begin(CallKind.NAMES)
        if name in self._stated and self._faults.strikes(FaultKind.STALE_LISTING):
            return self._stated[name]
        result = super().stat(name, folder_fd)
        self._stated[name] = result
        return result

    def preadv(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """May move less than asked, or other bytes than there are."""
        self._begin(CallKind.MOVES)
        if self._faults.strikes(FaultKind.PARTIAL):
            buffers = self._shortened(buffers)
        moved = super().preadv(fd, buffers, offset)
        if moved and self._faults.strikes(FaultKind.BIT_FLIP):
            flip(buffers[0][:moved], self._faults)
        return moved

    def pwritev(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """May write less than asked, less than it says, or other bytes."""
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
        """May be refused."""
        self._begin(CallKind.WRITES)
        super().sync_data(fd)

    def sync(self, fd: int) -> None:
        """May be refused."""
        self._begin(CallKind.WRITES)
        super().sync(fd)

    def rename(self, old: str, new: str, folder_fd: int) -> None:
        """May be refused."""
        self._begin(CallKind.WRITES | CallKind.NAMES)
        super().rename(old, new, folder_fd)

    def rename_exclusive(self, old: str, new: str, folder_fd: int) -> None:
        """May be refused, or find what was removed."""
        self._begin(CallKind.WRITES | CallKind.NAMES)
        if self._faults.strikes(FaultKind.STALE_LISTING):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        super().rename_exclusive(old, new, folder_fd)

    def link(self, old: str, new: str, folder_fd: int) -> None:
        """May be refused."""
        self._begin(CallKind.WRITES | CallKind.NAMES)
        super().link(old, new, folder_fd)

    def unlink(self, name: str, folder_fd: int) -> None:
        """May be refused."""
        self._begin(CallKind.NAMES)
        super().unlink(name, folder_fd)

    def make_folder(self, name: str, folder_fd: int) -> None:
        """May be refused."""
        self._begin(CallKind.WRITES | CallKind.NAMES)
        super().make_folder(name, folder_fd)

    def remove_folder(self, name: str, folder_fd: int) -> None:
        """May be refused."""
        self._begin(CallKind.NAMES)
        super().remove_folder(name, folder_fd)

    def entries(self, name: str, folder_fd: int) -> list[FolderEntry]:
        """May be those of a while ago."""
        self._begin(CallKind.OPENS | CallKind.NAMES)
        if name in self._listed and self._faults.strikes(FaultKind.STALE_LISTING):
            return self._listed[name]
        found = super().entries(name, folder_fd)
        self._listed[name] = found
        return found

    def _begin(self, call: CallKind) -> None:
        self._faults.suffer(call)
        if self._faults.strikes(FaultKind.FOLDER_REMOVED):
            self._remove_a_folder()

    def _remove_a_folder(self) -> None:
        """Of a key space its blocks, itself, or everything with the root."""
        spaces = [each for each in self._root.glob("*") if each.is_dir()]
        choice = self._faults.pick(8)
        for space in spaces:
            shutil.rmtree(space / "blocks" if choice < 5 else space, ignore_errors=True)
        if choice == 7:
            shutil.rmtree(self._root, ignore_errors=True)

    def _damage(self, name: str, folder_fd: int) -> None:
        """Change the file that is about to be read, where that is what is armed."""
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
        """Says that all is written; some of it is, and the rest is zeros or beyond the end."""
        size = sum(map(len, buffers))
        super().pwritev(fd, self._shortened(buffers), offset)
        if self._faults.pick(2):
            os.ftruncate(fd, offset + size)
        return size


def flip(buffer: Buffer, faults: Faults) -> None:
    """Change one bit."""
    buffer[faults.pick(len(buffer))] ^= np.uint8(1 << faults.pick(8))
