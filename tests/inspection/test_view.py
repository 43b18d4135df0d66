"""Printable names, positions, and errors of storage that does not answer."""

import errno

import pytest

from kvtier.inspection.view import Entry, NotRegularFile, is_unreachable, printable
from kvtier.tiers.shared.store import Stat


def test_printable_escapes_control_characters() -> None:
    assert printable("plain é 한.txt") == "plain é 한.txt"
    assert printable("a\x1b[2Jb\n\udcff") == "a\\x1b[2Jb\\n\\udcff"


@pytest.mark.parametrize(
    ("number", "silent"),
    [
        (errno.ETIMEDOUT, True),
        (errno.ECONNREFUSED, True),
        (errno.ENOTCONN, True),
        (errno.EIO, False),
        (errno.EACCES, False),
        (errno.EINVAL, False),
    ],
)
def test_is_unreachable_distinguishes_silence_from_file_errors(number: int, silent: bool) -> None:
    assert is_unreachable(OSError(number, "x")) == silent
    assert not is_unreachable(NotRegularFile("x"))


def test_folder_position_is_that_of_its_contents() -> None:
    stat = Stat(0, "", 0.0)
    assert Entry("a", "folder", stat, 0).position == "a/"
    assert Entry("a", "file", stat, 0).position == "a"
    assert not Entry("a", "link", stat, 0).is_folder
