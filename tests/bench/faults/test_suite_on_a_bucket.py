"""The fault matrix on a real server: it finds no failure and touches only its own objects."""

import pytest
from obstore.store import S3Store

from kvtier_bench.faults import suite


@pytest.mark.parametrize("name", ["bucket/read/folder removed", "bucket/write/over-long"])
def test_cell_on_a_bucket_touches_nothing_else(
    bucket_url: str, bucket_client: S3Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "_BUCKET_OPERATIONS", 12)
    bucket_client.put("neighbour", b"x")
    store = suite._open_bucket(f"{bucket_url}/")
    (cell,) = [each for each in suite._bucket_cells(store) if each.name == name]
    assert suite.run_one(cell, 1).value == 0
    store.close()
    assert [meta["path"] for page in bucket_client.list() for meta in page] == ["neighbour"]
