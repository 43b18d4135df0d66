"""The contract of a store, and the names its files may have."""

import itertools
import os
import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from kvtier.clock import unique_id
from kvtier.tiers.base import Buffer


class Stat(NamedTuple):
    """What a store says of one file. `modified_s` are Unix seconds of the store's clock."""

    size: int
    version: str
    """Changes when the name stands for another file: an inode, an entity tag."""
    modified_s: float


class Read(NamedTuple):
    """A part of a file: `filled_bytes` of the buffers are valid, less at the end of the file."""

    stat: Stat
    filled_bytes: int


class ListEntry(NamedTuple):
    """One entry of a listing."""

    name: str
    stat: Stat


class ListPage(NamedTuple):
    """Entries in the order of their names. `after` continues the listing; None ends it."""

    entries: list[ListEntry]
    after: str | None


@runtime_checkable
class Store(Protocol):
    """Keeps whole files. Every method blocks and may be called from any thread.

    Names are relative, `/` between parts, each part of letters, digits, `-`, `_` and `.` and not
    starting with `.`; anything else raises ValueError. Where the place refuses (EIO, ENOSPC,
    EACCES, EMFILE, unreachable, credentials refused) every method raises OSError with its
    errno; TimeoutError where the store's own time limit passed.
    """

    def publish(self, name: str, parts: Sequence[Buffer]) -> bool:
        """Make `name` with the bytes of `parts` in order, whole, as durable as configured.

        False where the name exists already: then nothing was changed. Of any number of
        writers at once, on any hosts, at most one gets True.
        """
        ...

    def put(self, name: str, data: bytes) -> Stat:
        """Make or replace a small file, whole."""
        ...

    def read(self, name: str, offset: int, buffers: Sequence[Buffer]) -> Read | None:
        """Fill `buffers` in order from `offset`; None where there is no such file."""
        ...

    def stat(self, name: str) -> Stat | None:
        """Of one file; None where there is none."""
        ...

    def remove(self, name: str) -> bool:
        """Remove a file; False where there was none."""
        ...

    def move(self, name: str, to: str) -> bool:
        """Give a file another name, replacing what has it; False where there was none."""
        ...

    def list(self, folder: str, after: str = "", limit: int = 1000) -> ListPage:
        """Files below `folder`, at any depth, whose names come after `after`, in name order."""
        ...

    def close(self) -> None:
        """Release threads, descriptors and connections. Idempotent."""
        ...


TEMPORARY = ".tmp-"
"""How the last part of a temporary name starts."""

_PART = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*"
_NAME = re.compile(rf"{_PART}(?:/{_PART})*")
_LEGAL_PART = re.compile(_PART)
_NOT_OF_A_HOST = re.compile(r"[^A-Za-z0-9_.-]")
_HOST_CHARACTERS = 64


def check_name(name: str) -> str:
    """`name` as it is; ValueError where a store cannot have a file of that name."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} names no file of a store: parts between `/` are of letters, digits, "
            "`-`, `_` and `.`, and do not start with `.`"
        )
    return name


def check_folder(folder: str) -> str:
    """As `check_name`; empty for the store itself."""
    return check_name(folder) if folder else folder


def is_legal_part(part: str) -> bool:
    """Whether a name may have this between two `/`."""
    return _LEGAL_PART.fullmatch(part) is not None


def folder_of(name: str) -> str:
    """What is before the last `/`, empty for a file directly in the store."""
    return name.rpartition("/")[0]


def join(folder: str, part: str) -> str:
    """The name of `part` in `folder`."""
    return f"{folder}/{part}" if folder else part


def check_temporary(name: str) -> str:
    """`name` as it is; ValueError where it is not that of a temporary file of a store."""
    folder, _, part = name.rpartition("/")
    check_folder(folder)
    if not is_temporary(part) or not is_legal_part(part.removeprefix(".")):
        raise ValueError(f"{name!r} is not a temporary file of a store")
    return name


def is_temporary(part: str) -> bool:
    """Whether a file of this name, without its folder, is one that is being written."""
    return part.startswith(TEMPORARY)


class TemporaryNames:
    """Temporary names of one writer. Safe from any thread and in forked children."""

    def __init__(self) -> None:
        host = _NOT_OF_A_HOST.sub("-", os.uname().nodename)[:_HOST_CHARACTERS]
        self._start = f"{TEMPORARY}{host}-"
        # Containers share host names and process numbers: those two do not tell writers apart.
        self._writer = unique_id()[:16]
        self._count = itertools.count()

    def next(self, folder: str) -> str:
        """A name in `folder` that nobody has had."""
        part = f"{self._start}{os.getpid()}-{next(self._count)}-{self._writer}"
        return join(folder, part)
