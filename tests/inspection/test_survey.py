"""The survey's JSON, which is a stable interface."""

import os
from pathlib import Path

import msgspec
import pytest

from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.survey import FileTally
from tests.inspection.stores import NAME, StoreFolder, keys
from tests.inspection.test_surveyor import surveyed


def test_survey_fields_are_stable(store: StoreFolder) -> None:
    store.fill(keys(4), reads=1)
    store.plant(f"{NAME}/quarantine/x.kvt")
    store.plant_tree({"model_name": "m", "blocks_per_file": 4})
    tree = msgspec.json.decode(msgspec.json.encode(surveyed(store)))
    bulk = {"files", "nominal_bytes", "physical_bytes", "oldest_s", "median_s", "newest_s"}
    assert set(tree) >= {
        *("format", "path", "now_s", "file_system", "spaces", "differing", "foreign"),
        *("temporaries", "leases", "unknown_found", "unknown"),
        *("unreadable_found", "unreadable"),
    }
    assert set(tree["file_system"]) >= {
        *("total_bytes", "free_bytes", "total_inodes", "free_inodes"),
    }
    (space,) = tree["spaces"]
    assert set(space) >= {
        *("name", "keyed", "mistake", "space", "segments", "blocks", "odd_lengths"),
        *("journals", "summaries", "quarantined", "hottest"),
    }
    assert set(space["segments"]) >= bulk
    assert set(tree["temporaries"]) >= bulk
    assert set(space["quarantined"][0]) >= {"file", "bytes", "modified_s", "reason"}
    assert set(space["hottest"][0]) >= {
        *("first_key", "parent", "reads", "last_read_s", "segments", "blocks", "tokens"),
    }
    (foreign,) = tree["foreign"]
    assert set(foreign) >= {
        *("name", "system", "config", "mistake", "ranks", "groups", "files", "others"),
    }
    assert tree["format"] == 1


def test_totals_without_files_have_no_ages() -> None:
    totals = FileTally().totals()
    assert (totals.files, totals.nominal_bytes, totals.physical_bytes) == (0, 0, 0)
    assert (totals.oldest_s, totals.median_s, totals.newest_s) == (None, None, None)


def test_totals_of_sizes_and_ages(tmp_path: Path) -> None:
    tally = FileTally()
    for number, time in enumerate((50, 10, 30)):
        file = tmp_path / str(number)
        with file.open("wb") as sparse:
            sparse.truncate(1 << 20)
        os.utime(file, (0, time))
    folder = FolderView(tmp_path)
    for entry in folder.entries():
        tally.add(entry)
    folder.close()
    totals = tally.totals()
    assert (totals.files, totals.nominal_bytes) == (3, 3 << 20)
    assert totals.physical_bytes < 1 << 20, "holes of sparse files are not allocated"
    assert (totals.oldest_s, totals.median_s, totals.newest_s) == pytest.approx((10, 30, 50))
