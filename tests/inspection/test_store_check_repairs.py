"""Repairs of a store, which touch only broken and abandoned files."""

import errno
import os
from collections.abc import Iterator

import pytest

from kvtier.blocks.checksum import Xxh3
from kvtier.errors import InvalidSettings
from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.segments import Rules, rules_of
from kvtier.inspection.store_check import Repairs
from kvtier.inspection.view import Entry
from kvtier.tiers.shared.manifest import manifest_of
from kvtier.tiers.shared.reading import QUARANTINE_FILES
from tests.inspection.stores import NAME, SPACE, StoreFolder, keys

RULES: Rules = rules_of(manifest_of(SPACE, Xxh3()), Xxh3())


@pytest.fixture
def repairs(store: StoreFolder) -> Iterator[Repairs]:
    folder = FolderView(store.path)
    opened = Repairs(folder.open_store())
    yield opened
    opened.close()
    folder.close()


def seen(store: StoreFolder, block: int) -> Entry:
    name = store.name(keys(1, block)[0])
    folder = FolderView(store.path)
    try:
        (entry,) = (e for e in folder.entries(name.rpartition("/")[0]) if e.name == name)
    finally:
        folder.close()
    return entry


def quarantined(store: StoreFolder) -> list[str]:
    return [file.name for file in store.path.glob("*/quarantine/*")]


def test_quarantine_moves_a_broken_segment(store: StoreFolder, repairs: Repairs) -> None:
    store.fill(keys(8))
    content = store.file(keys(1)[0]).read_bytes()
    assert repairs.quarantine(NAME, RULES, keys(1)[0], seen(store, 0), "x") == "quarantined"
    assert not store.file(keys(1)[0]).exists()
    assert store.file(keys(1, 4)[0]).exists()
    (file,) = store.path.glob("*/quarantine/*")
    assert file.read_bytes() == content


def test_quarantine_that_is_full_is_reported(store: StoreFolder, repairs: Repairs) -> None:
    store.fill(keys(QUARANTINE_FILES + 1), segment_blocks=1)
    done = [
        repairs.quarantine(NAME, RULES, first, seen(store, number), "x")
        for number, first in enumerate(keys(QUARANTINE_FILES + 1))
    ]
    assert done == ["quarantined"] * QUARANTINE_FILES + ["removed, the quarantine is full"]


def test_quarantine_of_a_removed_segment_does_nothing(store: StoreFolder, repairs: Repairs) -> None:
    """This holds even if the quarantine has an older file of the same name."""
    blocks = keys(QUARANTINE_FILES)
    for _ in range(2):
        store.fill(blocks, segment_blocks=1)
        done = [
            repairs.quarantine(NAME, RULES, first, seen(store, number), "x")
            for number, first in enumerate(blocks)
        ]
    assert done == ["removed, the quarantine is full"] * QUARANTINE_FILES


def test_quarantine_keeps_a_replaced_file(store: StoreFolder, repairs: Repairs) -> None:
    store.fill(keys(4))
    entry = seen(store, 0)
    file = store.file(keys(1)[0])
    content = file.read_bytes()
    file.rename(file.with_name("old"))
    file.write_bytes(content)
    assert repairs.quarantine(NAME, RULES, keys(1)[0], entry, "x") is None
    file.unlink()
    assert repairs.quarantine(NAME, RULES, keys(1)[0], entry, "x") is None
    assert quarantined(store) == []


def test_now_is_the_time_of_the_store(store: StoreFolder, repairs: Repairs) -> None:
    before = set(store.path.iterdir())
    assert repairs.now_s() == pytest.approx(store.plant("later").stat().st_mtime, abs=60)
    (store.path / "later").unlink()
    assert set(store.path.iterdir()) == before, "the time stamp file is removed"


def test_remove_temporary_refuses_other_files(store: StoreFolder, repairs: Repairs) -> None:
    file = store.plant("a/.tmp-host-1-0-ab")
    assert repairs.remove_temporary("a/.tmp-host-1-0-ab") == "removed"
    assert not file.exists()
    assert repairs.remove_temporary("a/.tmp-host-1-0-ab") is None
    with pytest.raises(ValueError, match="not the name of a temporary file"):
        repairs.remove_temporary("a/mine")


def test_open_store_refuses_a_read_only_folder(
    store: StoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def read_only(path, flags: int, *args, **options) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", read_only)
    folder = FolderView(store.path)
    with pytest.raises(InvalidSettings, match=r"--repair: .* read-only file system"):
        folder.open_store()
    folder.close()
