"""Bounds as people write them: `500GiB`, `85%`, `--quota FOLDER=20GiB`; checked against sense.

Why: an evictor that was told nonsense deletes the wrong things, so each mistake is one error at
start that names the flag and the fix. Invariant: of every pair that leaves here, low is below
high, both are of one unit, and neither is more than there is.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from kvtier.errors import InvalidSettings
from kvtier.evictor.budget import Mark, Marks
from kvtier.evictor.filesystem import FileSystem
from kvtier.evictor.layouts import recognise
from kvtier.settings.sizes import approximate_size, parse_size

LOW_OF_HIGH: Final = 0.9
"""Where no low watermark is given."""

_LEAST_BYTES: Final = 1 << 20
"""No number below it is meant as bytes."""
_PERCENT = re.compile(r"\s*(\d{1,3}(?:\.\d{1,6})?)\s*%\s*")
_COUNT = re.compile(r"[1-9]\d{0,17}")


class Bound(NamedTuple):
    """A size, or a part of the file system: one of the two."""

    size_bytes: int | None = None
    per_cent: float | None = None


def parse_bound(text: str, flag: str) -> Bound:
    """Raises InvalidSettings naming `flag`."""
    if "%" not in text:
        return Bound(size_bytes=_size(text, flag))
    found = _PERCENT.fullmatch(text)
    per_cent = float(found[1]) if found else 0.0
    if not 0 < per_cent <= 100:
        raise InvalidSettings(
            f"{flag}: {text!r} is no part of a file system; write a number between 0 and 100, "
            "for example 85%"
        )
    return Bound(per_cent=per_cent)


def byte_mark(
    high: str | None, low: str | None, filesystem: FileSystem | None
) -> tuple[Mark, bool]:
    """The pair in bytes, and whether it holds against the whole file system (`85%`).

    `filesystem` None: a bucket, which has none. Raises InvalidSettings.
    """
    if high is None:
        if low is not None:
            raise InvalidSettings("--low: there is no --high above it; give both, or only --high")
        return Mark(), False
    upper = parse_bound(high, "--high")
    lower = _scaled(upper) if low is None else parse_bound(low, "--low")
    if (upper.per_cent is None) != (lower.per_cent is None):
        raise InvalidSettings(
            f"--low: {low} and --high {high} are of two kinds; give two sizes, or two percentages"
        )
    if upper.per_cent is None or lower.per_cent is None:
        mark = Mark(upper.size_bytes, lower.size_bytes)
        _check_fits(mark, "--high", filesystem)
    else:
        if filesystem is None:
            raise InvalidSettings(f"--high: {high} of what? A bucket has no size; write 500GiB")
        total = filesystem.total_bytes
        mark = Mark(int(total * upper.per_cent / 100), int(total * lower.per_cent / 100))
    _check_order(mark, "--low", f"{low}", f"{high}")
    return mark, upper.per_cent is not None


def inode_mark(high: str | None, low: str | None, filesystem: FileSystem | None = None) -> Mark:
    """The pair in files. Raises InvalidSettings."""
    if high is None:
        if low is not None:
            raise InvalidSettings("--low-inodes: there is no --high-inodes above it; give both")
        return Mark()
    upper = _count(high, "--high-inodes")
    lower = int(upper * LOW_OF_HIGH) if low is None else _count(low, "--low-inodes")
    mark = Mark(upper, lower)
    _check_order(mark, "--low-inodes", f"{low}", high)
    if filesystem is not None and 0 < filesystem.total_inodes < upper:
        raise InvalidSettings(
            f"--high-inodes: {upper} is more than the file system has ({filesystem.total_inodes}), "
            "so it would fill up first; make it smaller"
        )
    return mark


def quota_marks(texts: Iterable[str], filesystem: FileSystem | None) -> dict[str, Marks]:
    """`FOLDER=SIZE` by folder. Raises InvalidSettings."""
    quotas: dict[str, Marks] = {}
    for text in texts:
        folder, equals, size = text.rpartition("=")
        if not equals or recognise(folder) is None:
            raise InvalidSettings(
                f"--quota: {text!r} does not name a folder and a size; write a folder at the top "
                "of the store, for example Qwen3-8B-0123456789abcdef=200GiB"
            )
        if folder in quotas:
            raise InvalidSettings(f"--quota: {folder} has two; keep one of them")
        high = _size(size, f"--quota {folder}")
        mark = Mark(high, int(high * LOW_OF_HIGH))
        _check_fits(mark, f"--quota {folder}", filesystem)
        quotas[folder] = Marks(mark)
    return quotas


def _size(text: str, flag: str) -> int:
    """`--high 85` is 85 bytes to `parse_size`: it would empty a store that it should fill."""
    size_bytes = parse_size(text, flag)
    if text.strip().isdecimal() and size_bytes < _LEAST_BYTES:
        raise InvalidSettings(f"{flag}: {text} is {text} bytes; write {text}% or {text}GiB")
    return size_bytes


def _scaled(bound: Bound) -> Bound:
    if bound.size_bytes is not None:
        return Bound(size_bytes=int(bound.size_bytes * LOW_OF_HIGH))
    return Bound(per_cent=(bound.per_cent or 0.0) * LOW_OF_HIGH)


def _count(text: str, flag: str) -> int:
    if not _COUNT.fullmatch(text.strip()):
        raise InvalidSettings(f"{flag}: {text!r} is no number of files; write for example 2000000")
    return int(text)


def _check_order(mark: Mark, flag: str, low: str, high: str) -> None:
    if mark.high is not None and mark.low is not None and mark.low >= mark.high:
        raise InvalidSettings(
            f"{flag}: {low} is not below {flag.replace('low', 'high')} {high}; above the high "
            "watermark files go until the low one is reached, so swap them"
        )


def _check_fits(mark: Mark, flag: str, filesystem: FileSystem | None) -> None:
    if filesystem is None or mark.high is None or mark.high <= filesystem.total_bytes:
        return
    raise InvalidSettings(
        f"{flag}: {approximate_size(mark.high)} is more than the file system has "
        f"({approximate_size(filesystem.total_bytes)}), so it would fill up first; make it smaller"
    )
