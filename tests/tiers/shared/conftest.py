from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiers.shared.segments import Tiers


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[Tiers]:
    """Tiers of several engines in one folder."""
    tiers = Tiers(tmp_path)
    yield tiers
    tiers.close()
