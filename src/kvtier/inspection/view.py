"""The contract of a view: read-only access to a shared folder or bucket, for inspection.

A view is not a `Store`, because a store is made for writers. Opening a store in a folder writes
probe files, which a read-only mount refuses, and its listings leave out links, pipes and files of
other programs, which an inspection has to show. `folder_view` has the view of a folder,
`store_view` that of any store, such as a bucket.

Invariants: a view changes nothing. A walk yields entries in the order of their full names, so it
can be resumed after any position.
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from kvtier.inspection.state_file import StateFile
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.store import Read, Stat, Store

_UNREACHABLE = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENOTCONN,
        errno.ESHUTDOWN,
        errno.ETIMEDOUT,
    }
)


def printable(name: str) -> str:
    """Return `name` with control characters and unpaired surrogates escaped."""
    if name.isprintable():
        return name
    escaped = (
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in name
    )
    return "".join(escaped)


def is_unreachable(error: OSError) -> bool:
    """Return True if the storage did not answer, so the error says nothing about the file."""
    return error.errno in _UNREACHABLE


class NotRegularFile(OSError):
    """The name belongs to a link, pipe, socket, device or folder instead of a regular file."""

    def __init__(self, name: str) -> None:
        super().__init__(errno.EINVAL, "not a regular file", name)


class Entry(NamedTuple):
    """A file, a folder or anything else that has a name in a store."""

    name: str
    """Full name, relative to the store's root."""
    what: str
    """`file`, `folder`, `link`, `pipe`, `socket` or `device`."""
    stat: Stat
    """Meaningless for a folder in a bucket."""
    physical_bytes: int
    """Allocated bytes, as `du` counts them; in a bucket the length."""

    @property
    def is_folder(self) -> bool:
        """Whether this is a folder itself, not a link to one."""
        return self.what == "folder"

    @property
    def is_file(self) -> bool:
        """Whether this is a regular file, or an object of a bucket."""
        return self.what == "file"

    @property
    def position(self) -> str:
        """The sort key of a walk; a folder sorts where its contents would."""
        return f"{self.name}/" if self.is_folder else self.name


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """Size and free space of the file system of a folder, as available to users without root."""

    total_bytes: int
    free_bytes: int
    total_inodes: int
    free_inodes: int


class View(Protocol):
    """An open folder or bucket. Safe from any thread. Methods block and raise OSError."""

    place: str
    """Path or URL, as the user gave it."""

    @property
    def identity(self) -> str:
        """A string that identifies the place: equal for equal places only."""
        ...

    def entries(self, folder: str = "") -> Iterator[Entry]:
        """Yield the entries of `folder` in the order of a walk.

        Entries that are removed meanwhile are left out. Costs one system call per file, all
        before the first entry; in a bucket one request per entry.
        """
        ...

    def walk(
        self,
        folder: str,
        looks_into: Callable[[str], bool],
        on_unreadable: Callable[[str, OSError], None],
        after: str = "",
    ) -> Iterator[Entry]:
        """Yield every entry below `folder` whose `position` is greater than `after`, in order.

        A folder for which `looks_into` returns True is descended into; any other is yielded
        itself. A folder that cannot be listed is passed to `on_unreadable`. Raises OSError if the
        storage does not answer. Holds one folder, or one page of a listing, in memory.
        """
        ...

    def stat(self, name: str) -> Stat | None:
        """Return the Stat of a file; None if it does not exist. Raises NotRegularFile."""
        ...

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """Return the content of a file; None if it does not exist.

        Raises OSError (EFBIG) if it is longer than `limit_bytes`.
        """
        ...

    def read_into(self, name: str, offset: int, buffers: Sequence[Buffer]) -> Read | None:
        """Fill `buffers` in order from `offset`; return None if the file does not exist.

        Raises NotRegularFile. Never follows a link or waits for a pipe.
        """
        ...

    def file_system(self) -> Capacity | None:
        """Return the size and free space of the file system; None for a bucket."""
        ...

    def state_file(self) -> StateFile:
        """Return the file in which a check saves its position by default."""
        ...

    def open_store(self) -> Store:
        """Open the same place for writing; the caller closes the store.

        Raises InvalidSettings if it cannot be written to.
        """
        ...

    def close(self) -> None:
        """Close the view; further calls do nothing."""
        ...
