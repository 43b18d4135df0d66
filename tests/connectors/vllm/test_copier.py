import numpy as np
import pytest

from kvtier.connectors.vllm.copier import DeviceJob, JobKind
from kvtier.connectors.vllm.slots import GroupCopy


def job(groups: list[tuple[list[int], list[int]]]) -> DeviceJob:
    moves = [
        GroupCopy(number, np.array(blocks), np.array(slots), np.zeros(len(blocks)))
        for number, (blocks, slots) in enumerate(groups)
    ]
    host = np.zeros((1, 1), dtype=np.uint8)
    return DeviceJob(job_id=1, kind=JobKind.LOAD, copies=moves, host=host, moved_bytes=0)


@pytest.mark.parametrize(
    ("theirs", "conflict"),
    [
        (job([([5], [5])]), False),
        (job([([5, 2], [5, 6])]), True),
        (job([([5], [9])]), True),
        # Groups lie over the same tensors: a block number is one place, whatever the group.
        (job([([], []), ([1], [8])]), True),
        (job([]), False),
    ],
    ids=["apart", "block", "slot", "another group's block", "nothing"],
)
def test_jobs_conflict_over_a_shared_block_or_slot(theirs: DeviceJob, conflict: bool) -> None:
    mine = job([([1, 2], [9, 9]), ([3], [4])])
    assert mine.conflicts(theirs) is conflict
    assert theirs.conflicts(mine) is conflict


def test_who_waits_for_a_job_decides_its_priority() -> None:
    assert JobKind.STORE < JobKind.LOAD < JobKind.EXPEDITED_LOAD
