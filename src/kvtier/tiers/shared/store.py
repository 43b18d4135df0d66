"""The contract of a store: whole files by name, in a place that many hosts see at once.

Why a seam: a shared folder and a bucket keep the same files under the same names; what lies
above (format, packing, verification, quarantine, access journals, leases) is written once.

Invariants: a name that `publish` made shows all of its bytes or is not there; nobody ever sees
a temporary file in `list`, `stat` or `read`. All times are the store's own clock, never this
host's, so that hosts whose clocks differ agree.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

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


class Listed(NamedTuple):
    """One entry of a listing."""

    name: str
    stat: Stat


class ListPage(NamedTuple):
    """Entries in the order of their names. `after` continues the listing; None ends it."""

    entries: list[Listed]
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
