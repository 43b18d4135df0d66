import numpy as np

from kvtier.index.fleet.answers import answers
from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.levels import Levels


def test_blocks_become_tokens_by_tier_and_equal_answers_are_one() -> None:
    levels = Levels()
    levels.use("disk")
    ends = np.zeros((4, 8), dtype=np.int64)
    ends[1] = [2, 3, 3, 5, 5, 5, 5, 0]
    ends[3] = [2, 2, 4, 4, 4, 4, 4, 3]
    one, other, third = answers(ends, [3, 2, 3], levels, 16, 100)
    assert one.tokens == {DEVICE: 48, "disk": 64}
    assert list(one.tokens) == [DEVICE, "disk"]
    assert other.tokens == {DEVICE: 0, "disk": 0}
    assert one is third
    assert one.total_tokens == 100
