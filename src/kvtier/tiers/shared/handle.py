"""One open file of a shared folder: moves whole batches of buffers, past the page cache if it can.

Invariant: a transfer ends only when all is moved, the file ends, or the file system refuses. A
call that moves less than asked goes on where it stopped; O_DIRECT that the kernel refuses
(memory or a position it cannot take) is switched off for this file and the call made again.
"""

import errno
import os
from collections.abc import Callable, Sequence

from kvtier.blocks.layout import ALIGNMENT
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.files import StoreFiles

_Call = Callable[[int, Sequence[Buffer], int], int]
_BUFFERS_A_CALL = 1024
"""The kernel takes no more at once (IOV_MAX)."""


def in_whole_pages(offset: int, buffers: Sequence[Buffer]) -> bool:
    """Whether O_DIRECT can move `buffers`, as far as lengths tell; the kernel knows the rest."""
    return offset % ALIGNMENT == 0 and not any(len(buffer) % ALIGNMENT for buffer in buffers)


class Handle:
    """An open file. Belongs to one call; `close` it. Every method raises OSError."""

    def __init__(self, files: StoreFiles, name: str, flags: int, folder_fd: int) -> None:
        """Open. O_DIRECT is dropped from `flags` where the file system refuses it."""
        self._files = files
        self._direct = bool(flags & os.O_DIRECT)
        try:
            self._fd = files.open(name, flags, folder_fd)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._direct:
                raise
            self._direct = False
            # The file may have been made before the flag was refused.
            flags &= ~(os.O_DIRECT | os.O_EXCL)
            self._fd = files.open(name, flags, folder_fd)

    def stat(self) -> os.stat_result:
        """Of the file."""
        return self._files.stat_open(self._fd)

    def read(self, offset: int, buffers: Sequence[Buffer], wanted_bytes: int) -> int:
        """Fill the first `wanted_bytes` of `buffers`; returns less at the end of the file."""
        return self._move(self._files.preadv, offset, buffers, wanted_bytes)

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Write all `buffers` from the start of the file on."""
        wanted_bytes = sum(map(len, buffers))
        if self._move(self._files.pwritev, 0, buffers, wanted_bytes) < wanted_bytes:
            raise OSError(errno.ENOSPC, "nothing written")

    def sync_data(self) -> None:
        """Make bytes and length durable."""
        self._files.sync_data(self._fd)

    def sync(self) -> None:
        """Make all of it durable; of a folder, its names."""
        self._files.sync(self._fd)

    def close(self) -> None:
        """Close. An error here may be the first word of a failed write."""
        self._files.close(self._fd)

    def _move(self, call: _Call, offset: int, buffers: Sequence[Buffer], wanted_bytes: int) -> int:
        moved = 0
        left = buffers
        while moved < wanted_bytes:
            try:
                step = call(self._fd, left[:_BUFFERS_A_CALL], offset + moved)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._direct = False
                self._files.use_page_cache(self._fd)
                continue
            if step == 0:
                break
            moved += step
            if moved < wanted_bytes:
                left = _after(left, step)
        return moved


def _after(buffers: Sequence[Buffer], moved: int) -> Sequence[Buffer]:
    """What is left of `buffers` behind their first `moved` bytes, empty ones dropped."""
    for index, buffer in enumerate(buffers):
        if moved < len(buffer):
            return [buffer[moved:], *buffers[index + 1 :]]
        moved -= len(buffer)
    return []
