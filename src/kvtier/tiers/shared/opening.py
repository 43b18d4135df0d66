"""Opening a shared folder: what it can do is found out once, before the first block.

Why: file systems differ. Some refuse O_DIRECT, some (NFS, CephFS) know no exclusive rename but
hard links, some neither. A folder that cannot be used is one clear error at start.

Invariant: the descriptor of the folder is closed when the last call that uses it has ended, not
before, even where `close` came while a dead mount held that call: its number may belong to
another file by then.
"""

import errno
import logging
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from kvtier.blocks.layout import ALIGNMENT
from kvtier.errors import InvalidSettings
from kvtier.tiers.paths import open_folder, unusable
from kvtier.tiers.shared.files import StoreFiles
from kvtier.tiers.shared.names import TemporaryNames

logger = logging.getLogger(__name__)

SETTING = "shared.path"
Direct = Literal["auto", "always", "never"]
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_UNKNOWN = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK})
"""What a file system answers that does not know exclusive renames or links."""


class Root:
    """The open folder. Whoever holds a reference may use `fd`; the last one gone closes it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Opened(NamedTuple):
    """An open folder and what its file system can do."""

    root: Root
    direct: bool
    """Whether files go past the page cache."""
    renames: bool
    """Whether a rename can be exclusive; if not, hard links are."""


def open_root(path: Path, direct: Direct, files: StoreFiles, names: TemporaryNames) -> Opened:
    """Make (mode 0700), open and try out the folder; what was found is one line in the log.

    Raises InvalidSettings naming `shared.path`: no parent, not a folder, not writable, neither
    exclusive rename nor hard links; or `shared.direct_io`: `always` where there is no O_DIRECT.
    A full file system is no error: what it holds can be read. It gets no more than hard links
    then, and no O_DIRECT unless it is `always`.
    """
    root = Root(open_folder(SETTING, path))
    try:
        renames = _has_exclusive_rename(path, root, files, names)
        direct_works = direct != "never" and _has_direct(root, files, names)
    except OSError as error:
        if error.errno not in _FULL:
            raise unusable(SETTING, path, error) from error
        logger.warning("shared store %s is full: it could not be tried out", path)
        renames, direct_works = False, direct == "always"
    if direct == "always" and not direct_works:
        raise InvalidSettings(
            f"shared.direct_io: the file system of {path} does not take O_DIRECT; "
            "set shared.direct_io to auto or never"
        )
    logger.info(
        "shared store %s: %s, names taken by %s",
        path,
        "O_DIRECT" if direct_works else "page cache",
        "exclusive rename" if renames else "hard link",
    )
    return Opened(root, direct_works, renames)


def _has_exclusive_rename(path: Path, root: Root, files: StoreFiles, names: TemporaryNames) -> bool:
    """Whether renames can be exclusive; InvalidSettings where hard links cannot be made either."""
    if _excludes(files.rename_exclusive, root, files, names):
        return True
    if _excludes(files.link, root, files, names):
        return False
    raise InvalidSettings(
        f"{SETTING}: the file system of {path} knows neither exclusive renames nor hard links, "
        "so that two writers cannot be kept apart; use another file system"
    )


def _excludes(
    take: Callable[[str, str, int], None], root: Root, files: StoreFiles, names: TemporaryNames
) -> bool:
    """Whether `take` gives a free name to one file and refuses it to the next.

    Both are tried: the kernel refuses a taken name itself, before it asks a file system that
    knows no exclusive rename and would refuse the free one.
    """
    first, second, wanted = names.next(""), names.next(""), names.next("")
    try:
        for name in (first, second):
            files.close(files.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, root.fd))
        take(first, wanted, root.fd)
        take(second, wanted, root.fd)
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
    finally:
        for name in (first, second, wanted):
            discard(name, root, files)
    return False


def _has_direct(root: Root, files: StoreFiles, names: TemporaryNames) -> bool:
    """Whether O_DIRECT works: a page is written and read back."""
    name = names.next("")
    page = mmap.mmap(-1, 2 * ALIGNMENT)
    both = np.frombuffer(page, dtype=np.uint8)
    written, read = both[:ALIGNMENT], both[ALIGNMENT:]
    written[:] = np.arange(ALIGNMENT, dtype=np.uint32).astype(np.uint8)
    try:
        fd = files.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT, root.fd)
        try:
            files.pwritev(fd, [written], 0)
            files.preadv(fd, [read], 0)
        finally:
            files.close(fd)
    except OSError as error:
        if error.errno in _FULL:
            raise
        return False
    finally:
        discard(name, root, files)
    return bool(np.array_equal(written, read))


def discard(name: str, root: Root, files: StoreFiles) -> None:
    """Remove a temporary file; one that cannot be removed now is left to a sweep."""
    try:
        files.unlink(name, root.fd)
    except OSError:
        pass
