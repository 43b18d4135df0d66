"""Names in a store: which are legal, and the temporary ones that nobody sees.

Invariants: a legal name never leaves the store (`..` cannot be written) and never meets a
temporary one, because a part that starts with `.` is not legal and every temporary one does.
No two writers, on any hosts, choose the same temporary name.
"""

import itertools
import os
import re

from kvtier.clock import unique_id

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
