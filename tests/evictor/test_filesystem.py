import shutil
from pathlib import Path

import pytest

from kvtier.evictor.filesystem import measure


def test_as_df_says(tmp_path: Path) -> None:
    found, other = measure(tmp_path), shutil.disk_usage(tmp_path)
    assert found.used_bytes == pytest.approx(other.used, rel=0.01)
    assert found.total_bytes == pytest.approx(other.used + other.free, rel=0.01)
