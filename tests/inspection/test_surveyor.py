"""Surveys of a store."""

import errno
import os
from pathlib import Path

import pytest

from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.spaces import Secrets
from kvtier.inspection.survey import Survey
from kvtier.inspection.surveyor import Surveyor
from kvtier.inspection.view import Entry
from kvtier.testing.samples import sample_space
from tests.inspection.stores import (
    BLOCK_BYTES,
    NAME,
    SPACE,
    StoreFolder,
    flip,
    key_file,
    keys,
    spread,
)

FILE_BYTES = 4096 + 4 * 12_288


def surveyed(store: StoreFolder, *key_files: Path, **options) -> Survey:
    folder = FolderView(store.path)
    try:
        surveyor = Surveyor(folder, Secrets(key_files), lambda name, share: None)
        return surveyor.survey(**{"now_s": 0.0, **options})
    finally:
        folder.close()


def test_survey_counts_a_key_space(store: StoreFolder) -> None:
    store.fill(keys(10), reads=2)
    survey = surveyed(store)
    (space,) = survey.spaces
    assert (space.name, space.space, space.mistake, space.keyed) == (NAME, SPACE, None, False)
    assert (space.segments.files, space.blocks) == (3, 10)
    assert space.segments.nominal_bytes == 2 * FILE_BYTES + 4096 + 2 * 12_288
    assert space.segments.physical_bytes >= space.segments.nominal_bytes
    assert (space.journals, space.odd_lengths, space.quarantined) == (2, 0, [])
    (chain,) = space.hottest
    assert (chain.reads, chain.blocks, chain.tokens) == (2, 10, 160)
    assert (survey.differing, survey.foreign, survey.unknown_found) == ([], [], 0)
    assert survey.file_system is not None


def test_survey_ages_are_by_the_clock_of_the_store(store: StoreFolder) -> None:
    store.fill(keys(12))
    for number, file in enumerate(sorted(store.path.glob("*/blocks/*/*"))):
        os.utime(file, (9, 100 * (number + 1)))
    (space,) = surveyed(store).spaces
    segments = space.segments
    assert (segments.oldest_s, segments.median_s, segments.newest_s) == (100, 200, 300)


def test_survey_shows_what_keeps_key_spaces_apart(store: StoreFolder) -> None:
    names = [
        store.fill(keys(4), sample_space(block_bytes=BLOCK_BYTES, **fields))
        for fields in ({}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "tp_size": 2})
    ]
    store.fill(keys(4), sample_space(block_bytes=BLOCK_BYTES, model="alone"))
    (difference,) = surveyed(store).differing
    assert (difference.model, set(difference.spaces)) == ("tiny", set(names))
    assert difference.fields == {
        "dtype": dict(zip(names, ("float32", "bfloat16", "bfloat16"), strict=True)),
        "tp_size": dict(zip(names, (1, 1, 2), strict=True)),
    }


def test_survey_explains_files_in_quarantine(store: StoreFolder) -> None:
    store.fill(keys(12))
    quarantine = store.path / NAME / "quarantine"
    quarantine.mkdir()
    for number, at in ((0, 5000), (4, 20)):
        file = store.file(keys(1, number)[0])
        flip(file, at)
        file.rename(quarantine / f"{number}-x.kvt")
    store.file(keys(1, 8)[0]).rename(quarantine / "8-x.kvt")
    (space,) = surveyed(store).spaces
    reasons = [each.reason for each in space.quarantined]
    assert reasons[0] == "blocks damaged: 0 (1 of 4)"
    assert "checksum differs" in reasons[1]
    assert "intact" in reasons[2]
    assert space.segments.files == 0


def test_survey_without_the_secret_omits_what_needs_it(store: StoreFolder, tmp_path: Path) -> None:
    secret = key_file(tmp_path)
    store.fill(keys(4), key_file=secret, reads=1)
    store.plant(f"{NAME}/quarantine/x.kvt")
    (space,) = surveyed(store).spaces
    assert (space.keyed, space.blocks, space.hottest) == (True, 4, [])
    assert "--key-file" in space.quarantined[0].reason
    (space,) = surveyed(store, secret).spaces
    assert len(space.hottest) == 1
    assert "fewer than any header has" in space.quarantined[0].reason


def test_survey_with_a_damaged_manifest_has_sizes_and_ages(store: StoreFolder) -> None:
    store.fill(keys(4))
    store.plant(f"{NAME}/quarantine/x.kvt")
    (store.path / NAME / "manifest.json").write_text("{")
    (space,) = surveyed(store).spaces
    assert (space.space, space.blocks, space.segments.files) == (None, None, 1)
    assert "damaged" in str(space.mistake)
    assert "no manifest" in space.quarantined[0].reason


def test_survey_finds_wrong_lengths_without_reading(store: StoreFolder) -> None:
    store.fill(keys(8))
    os.truncate(store.file(keys(1)[0]), 10_000)
    (space,) = surveyed(store).spaces
    assert (space.odd_lengths, space.blocks) == (1, 4)


def test_survey_counts_all_other_files(store: StoreFolder) -> None:
    store.fill(keys(4))
    store.plant("leases/all.1")
    store.plant(".tmp-x", b"12345")
    store.plant("readme\x1b[2J")
    store.plant("backup/much/more")
    os.mkfifo(store.path / NAME / "blocks" / "pipe")
    store.file(keys(1)[0]).with_name("00.kvt").symlink_to("/etc/passwd")
    survey = surveyed(store)
    assert (survey.leases, survey.temporaries.files) == (1, 1)
    assert survey.temporaries.nominal_bytes == 5
    assert {each.name: each.what for each in survey.unknown} == {
        "backup": "folder",
        "readme\\x1b[2J": "file",
        f"{NAME}/blocks/pipe": "pipe",
        f"{NAME}/blocks/000/00.kvt": "link",
    }
    assert survey.unknown_found == 4


def test_survey_of_foreign_trees(store: StoreFolder) -> None:
    base = store.plant_tree({"model_name": "m", "gpu_blocks_per_file": 4})
    survey = surveyed(store)
    assert [tree.name for tree in survey.foreign] == [base]
    assert (survey.spaces, survey.unknown_found) == ([], 0)


def test_survey_of_one_key_space(store: StoreFolder) -> None:
    store.fill(keys(4))
    other = store.fill(keys(4), sample_space(block_bytes=BLOCK_BYTES, model="b"))
    store.plant("readme")
    survey = surveyed(store, wanted=[other])
    assert [space.name for space in survey.spaces] == [other]
    assert (survey.unknown_found, survey.unknown) == (0, [])


def test_survey_continues_after_unreadable_files(
    store: StoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for first in spread(3):
        store.fill([first])
    entries = FolderView.entries

    def refuse(folder: FolderView, name: str = "") -> list[Entry]:
        if name.endswith("blocks/001"):
            raise OSError(errno.EIO, "Input/output error")
        return list(entries(folder, name))

    monkeypatch.setattr(FolderView, "entries", refuse)
    survey = surveyed(store)
    assert survey.spaces[0].segments.files == 2
    assert [(each.name, each.what) for each in survey.unreadable] == [
        (f"{NAME}/blocks/001", "Input/output error")
    ]


def test_survey_continues_after_hostile_journals(store: StoreFolder) -> None:
    store.fill(keys(4), reads=1)
    store.plant(f"{NAME}/access/x-00000001.log", b"\xff" * 1000 + b"\n../..\n")
    with store.plant(f"{NAME}/access/x-00000002.log").open("wb") as file:
        file.truncate(1 << 30)
    (space,) = surveyed(store).spaces
    assert (space.journals, len(space.hottest)) == (3, 1)


def test_survey_reports_progress(store: StoreFolder) -> None:
    for first in spread(3):
        store.fill([first])
    shares = []
    folder = FolderView(store.path)
    Surveyor(folder, Secrets(), lambda name, share: shares.append(share)).survey(now_s=0.0)
    folder.close()
    assert shares == sorted(shares)
    assert len(shares) == 4
