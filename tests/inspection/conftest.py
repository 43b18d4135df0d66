from pathlib import Path

import pytest

from tests.inspection.stores import StoreFolder


@pytest.fixture
def store(tmp_path: Path) -> StoreFolder:
    """Return an empty shared folder."""
    path = tmp_path / "kv"
    path.mkdir()
    return StoreFolder(path)
