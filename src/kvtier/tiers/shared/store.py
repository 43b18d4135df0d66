"""The contract of a store: whole files by name, in a place that many hosts see at once.

A shared folder and a bucket keep the same files under the same names, so everything above them
(format, packing, verification, quarantine, access journals, leases) is written once, against this
contract.

Invariants: a name that `publish` created shows all of its bytes or does not exist; a temporary
file never appears in `list`, `stat` or `read`; a legal name never leaves the store, because `..`
is not legal, and never equals a temporary one, because a legal part does not start with `.` and a
temporary one does. All times come from the store's own clock and never from this host's, so that
hosts whose clocks differ agree.
"""

import itertools
import os
import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from kvtier.clock import unique_id
from kvtier.tiers.base import Buffer

TEMPORARY = ".tmp-"
"""The start of the last part of every temporary name."""

_PART = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_LEGAL_PART = re.compile(_PART)
_NOT_OF_A_HOST = re.compile(r"[^A-Za-z0-9_.-]")
_HOST_CHARACTERS = 64


class Stat(NamedTuple):
    """What a store knows of one file without reading it."""

    size: int
    version: str
    """Changes when the name stands for another file: made of the inode, or an entity tag."""
    modified_s: float
    """Unix seconds of the store's clock."""


class Read(NamedTuple):
    """The result of a read."""

    stat: Stat
    filled_bytes: int
    """How many bytes of the buffers are valid: fewer than asked for at the end of the file."""


class ListEntry(NamedTuple):
    """One file of a listing."""

    name: str
    stat: Stat


class ListPage(NamedTuple):
    """Files in the order of their names.

    Pass `after` to `list` for the next page; None: this is the last.
    """

    entries: list[ListEntry]
    after: str | None


@runtime_checkable
class Store(Protocol):
    """A place that keeps whole files. Every method blocks and may be called from any thread.

    Names are relative paths. Their parts consist of letters, digits, `-`, `_` and `.` and do not
    start with `.`; any other name raises ValueError. Where the place refuses (EIO, ENOSPC, EACCES,
    EMFILE, unreachable, credentials refused) every method raises OSError with its errno, and
    TimeoutError where the store's own time limit has passed.
    """

    def publish(self, name: str, parts: Sequence[Buffer]) -> bool:
        """Create `name` with the bytes of `parts` in order, as durable as configured.

        The file appears as a whole. False where the name exists: then nothing was changed. If any
        number of writers on any hosts publish one name at once, at most one of them gets True.
        """
        ...

    def put(self, name: str, data: bytes) -> Stat:
        """Create or replace a small file; readers see the old or the new one as a whole."""
        ...

    def read(self, name: str, offset: int, buffers: Sequence[Buffer]) -> Read | None:
        """Fill `buffers` in order with the bytes from `offset`; None where there is no file."""
        ...

    def stat(self, name: str) -> Stat | None:
        """Return what the store knows of a file; None where there is none."""
        ...

    def remove(self, name: str) -> bool:
        """Remove a file; False where there was none."""
        ...

    def move(self, name: str, to: str) -> bool:
        """Rename a file, replacing any file at `to`; False where there is no file `name`."""
        ...

    def list(self, folder: str, after: str = "", limit: int = 1000) -> ListPage:
        """Return the files below `folder`, at any depth, whose names come after `after`."""
        ...

    def close(self) -> None:
        """Release threads, descriptors and connections. Idempotent."""
        ...


def check_name(name: str) -> str:
    """Return `name`; raise ValueError if it is not a legal name of a file."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a legal file name of a store: the parts between `/` consist of "
            "letters, digits, `-`, `_` and `.`, and do not start with `.`"
        )
    return name


def check_folder(folder: str) -> str:
    """Return `folder`, like `check_name`; the empty string names the store itself."""
    return check_name(folder) if folder else folder


def is_legal_part(part: str) -> bool:
    """Return whether a name may contain `part` between two `/`."""
    return _LEGAL_PART.fullmatch(part) is not None


def folder_of(name: str) -> str:
    """Return what comes before the last `/`; empty for a file directly in the store."""
    return name.rpartition("/")[0]


def join(folder: str, part: str) -> str:
    """Return the name of `part` in `folder`, which may be empty."""
    return f"{folder}/{part}" if folder else part


def check_temporary(name: str) -> str:
    """Return `name`; raise ValueError if it is not the name of a temporary file of a store."""
    folder, _, part = name.rpartition("/")
    check_folder(folder)
    if not is_temporary(part) or not is_legal_part(part.removeprefix(".")):
        raise ValueError(f"{name!r} is not the name of a temporary file of a store")
    return name


def is_temporary(part: str) -> bool:
    """Return whether a file of this name (without its folder) is one that is being written."""
    return part.startswith(TEMPORARY)


class TemporaryNames:
    """A source of temporary names that no other writer on any host uses.

    Safe from any thread and in forked children.
    """

    def __init__(self) -> None:
        host = _NOT_OF_A_HOST.sub("-", os.uname().nodename)[:_HOST_CHARACTERS]
        self._start = f"{TEMPORARY}{host}-"
        # Containers may share both host name and process number, so these two are not enough.
        self._writer = unique_id()[:16]
        self._count = itertools.count()

    def next(self, folder: str) -> str:
        """Return a new name in `folder`."""
        part = f"{self._start}{os.getpid()}-{next(self._count)}-{self._writer}"
        return join(folder, part)
