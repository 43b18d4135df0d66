"""What is looked at: somebody's store, wherever it lies, seen without changing it.

Why not a `Store`: that one is made for writers. In a folder it tries out what it can do, and
shows neither links and pipes nor files of strangers, which are what a person who looks into a
folder wants to see; and the folder may be mounted read-only. So a folder has a view of its own
(`folder`), every store has one (`stored`), and what is above knows no difference.

Invariants: a view changes nothing; a walk is in the order of whole names, so that it can go on
behind any position it gave.
"""

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from kvtier.inspection.state_file import StateFile
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.store import Read, Stat, Store


def printable(name: str) -> str:
    """`name` with nothing in it that moves a cursor or that JSON cannot hold."""
    if name.isprintable():
        return name
    escaped = (
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in name
    )
    return "".join(escaped)


_SILENCE = frozenset(
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


def is_unreachable(error: OSError) -> bool:
    """Whether nobody answered: that says nothing of the file that was asked for."""
    return error.errno in _SILENCE


class NotRegularFile(OSError):
    """Not a file but a link, a pipe, a socket, a device or a folder."""

    def __init__(self, name: str) -> None:
        super().__init__(errno.EINVAL, "not a regular file", name)


class Entry(NamedTuple):
    """Something in a store. `name` is whole, below the root."""

    name: str
    what: str
    """In words: `file`, `folder`, `link`, `pipe`, `socket` or `device`."""
    stat: Stat
    """Of a file; a folder in a bucket has none to speak of."""
    physical_bytes: int
    """What it takes up, as `du` counts; in a bucket its length."""

    @property
    def is_folder(self) -> bool:
        """A folder itself, not a link to one."""
        return self.what == "folder"

    @property
    def is_file(self) -> bool:
        """A regular file, or an object."""
        return self.what == "file"

    @property
    def position(self) -> str:
        """Where it stands in a walk: what is in a folder comes where the folder does."""
        return f"{self.name}/" if self.is_folder else self.name


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder is on. What may be used by those who are not root is free."""

    total_bytes: int
    free_bytes: int
    total_inodes: int
    free_inodes: int


class View(Protocol):
    """An open store. Safe from any thread; methods block, and raise OSError. Close it."""

    place: str
    """Where it is, as a person names it."""

    @property
    def identity(self) -> str:
        """The same for the same place, another for another."""
        ...

    def entries(self, folder: str = "") -> Iterator[Entry]:
        """What is in `folder`, in the order of a walk; what vanishes is left out.

        In a folder: a call a file, before the first is given. In a bucket: a request each.
        """
        ...

    def walk(
        self,
        folder: str,
        looks_into: Callable[[str], bool],
        refused: Callable[[str, OSError], None],
        after: str = "",
    ) -> Iterator[Entry]:
        """Everything below `folder` whose `position` is behind `after`, in that order.

        A folder that `looks_into` is asked about is either looked into or given itself. One
        that cannot be listed is told to `refused`; where nothing answers at all this raises.
        Memory: one folder, or one page of a listing.
        """
        ...

    def stat(self, name: str) -> Stat | None:
        """Of one file; None where there is none. Raises NotRegularFile where it is none."""
        ...

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """All of a small file; None where there is none. EFBIG where it is longer."""
        ...

    def read_into(self, name: str, offset: int, buffers: Sequence[Buffer]) -> Read | None:
        """Fill `buffers` in order from `offset`; None where there is no such file.

        Raises NotRegularFile where it is none; no link is followed and no pipe waited for.
        """
        ...

    def file_system(self) -> Capacity | None:
        """How much room there is; None where nobody can tell, as of a bucket."""
        ...

    def note(self) -> StateFile:
        """Where a check keeps how far it got, unless a person names another place."""
        ...

    def open_store(self) -> Store:
        """The same place, to change something in it; close it.

        Raises InvalidSettings where it cannot be written to.
        """
        ...

    def close(self) -> None:
        """Idempotent."""
        ...
