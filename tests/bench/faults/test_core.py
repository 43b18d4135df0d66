from pathlib import Path

import pytest

from kvtier_bench.faults.core import run_core
from kvtier_bench.faults.faults import FaultKind, Faults
from kvtier_bench.faults.places import FolderPlace


@pytest.mark.parametrize("fault", FaultKind)
def test_cache_serves_under_every_fault(tmp_path: Path, fault: FaultKind) -> None:
    faults = Faults(2)
    tally = run_core(FolderPlace(tmp_path, faults), fault, 150)
    assert tally.operations >= 150
    assert (tally.wrong_bytes, tally.hangs, tally.exceptions, tally.over_bound) == (0, 0, 0, 0)
    assert tally.outcomes["READY"] > 0
    assert tally.outcomes["ABSENT"] > 0
