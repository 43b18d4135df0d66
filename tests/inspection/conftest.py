from pathlib import Path

import pytest

from tests.inspection.stores import StoreFolder


@pytest.fixture
def store(tmp_path: Path) -> StoreFolder:
    """A folder that engines shared; empty."""
    path = tmp_path / "kv"
    path.mkdir()
    return StoreFolder(path)
