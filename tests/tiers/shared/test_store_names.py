"""Legal names, temporary names, and that no name is both."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.testing.stores import REFUSED
from kvtier.tiers.shared.store import (
    TemporaryNames,
    check_folder,
    check_name,
    check_temporary,
    folder_of,
    is_legal_part,
    is_temporary,
    join,
)


@pytest.mark.parametrize("name", REFUSED)
def test_illegal_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not a legal file name"):
        check_name(name)
    if name:
        with pytest.raises(ValueError, match=r"is not a legal file name"):
            check_folder(name)
    assert not is_legal_part(name)


def test_empty_folder_names_the_store_itself() -> None:
    assert check_folder("") == ""
    assert check_folder("a/b") == check_name("a/b") == "a/b"
    assert not is_legal_part("a/b")


@given(st.text(alphabet="ab./-_é\n ", max_size=9))
def test_legal_name_stays_inside_the_store(name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        return
    assert os.path.normpath(name) == name
    assert not os.path.isabs(name)
    assert not name.startswith("..")
    assert join(folder_of(name), name.rpartition("/")[2]) == name


def test_temporary_name_is_recognized_and_not_legal() -> None:
    names = TemporaryNames()
    for folder in ("", "a/b"):
        name = names.next(folder)
        part = name.rpartition("/")[2]
        assert folder_of(name) == folder
        assert is_temporary(part)
        assert check_temporary(name) == name
        assert not is_legal_part(part)
        assert str(os.getpid()) in part.split("-")
        with pytest.raises(ValueError, match="is not a legal file name"):
            check_name(name)
    assert not is_temporary("tmp-a")


@pytest.mark.parametrize("name", ["a", "a/b", ".tmp-", "../.tmp-a", ".tmp-a/b", ".tmp-a\n", ".git"])
def test_check_temporary_refuses_other_names(name: str) -> None:
    if name == ".tmp-":
        assert check_temporary(name) == name
        return
    with pytest.raises(ValueError, match=r"not the name of a temporary|is not a legal file name"):
        check_temporary(name)


def test_temporary_names_are_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    writers = [TemporaryNames(), TemporaryNames()]
    barrier = threading.Barrier(4)

    def draw(writer: TemporaryNames) -> list[str]:
        barrier.wait()
        return [writer.next("") for _ in range(500)]

    with ThreadPoolExecutor(4) as threads:
        drawn = [name for names in threads.map(draw, writers * 2) for name in names]
    assert len(set(drawn)) == 2000
    first = writers[0].next("")
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as in a forked child
    assert writers[0].next("").split("-")[2:] != first.split("-")[2:]
