import os
from pathlib import Path

import pytest

from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.survey import FileTally


def test_totals_without_files_have_no_ages() -> None:
    bulk = FileTally().totals()
    assert (bulk.files, bulk.nominal_bytes, bulk.physical_bytes) == (0, 0, 0)
    assert (bulk.oldest_s, bulk.median_s, bulk.newest_s) == (None, None, None)


def test_totals_of_sizes_and_ages(tmp_path: Path) -> None:
    pile = FileTally()
    for number, time in enumerate((50, 10, 30)):
        file = tmp_path / str(number)
        with file.open("wb") as sparse:
            sparse.truncate(1 << 20)
        os.utime(file, (0, time))
    folder = FolderView(tmp_path)
    for entry in folder.entries():
        pile.add(entry)
    folder.close()
    bulk = pile.totals()
    assert (bulk.files, bulk.nominal_bytes) == (3, 3 << 20)
    assert bulk.physical_bytes < 1 << 20, "a hole takes no room on the disk"
    assert (bulk.oldest_s, bulk.median_s, bulk.newest_s) == pytest.approx((10, 30, 50))
