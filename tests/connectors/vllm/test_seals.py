import numpy as np
import pytest

from kvtier.connectors.vllm.seals import Seals
from kvtier.errors import InvalidSettings
from tests.cases import case


def test_slot_is_whole_after_every_rank_has_sealed() -> None:
    seals = Seals.create(slots=5, world_size=2)
    seals.seal(0, [1, 3])
    assert seals.whole([1, 3]).tolist() == [False, False]
    seals.seal(1, np.array([3], dtype=np.int32))
    assert seals.whole([1, 3, 4]).tolist() == [False, True, False]
    seals.break_seals([3])
    assert seals.whole([3]).tolist() == [False]
    seals.close()


def test_seals_are_visible_through_another_mapping() -> None:
    here = Seals.create(slots=10_000, world_size=3)
    there = Seals.attach(here.handle)
    for rank in range(3):
        there.seal(rank, [9_999])
    assert here.whole([9_998, 9_999]).tolist() == [False, True]
    there.close()
    there.close()
    here.close()


def test_attach_rejects_malformed_handle() -> None:
    for handle in ("", "3x2", "3x@/proc/self/fd/0:1:4096", "axb@x:1:1"):
        with case(handle), pytest.raises(InvalidSettings, match="seals"):
            Seals.attach(handle)
