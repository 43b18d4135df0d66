import numpy as np

from kvtier.connectors.vllm.copier import DeviceJob, JobKind
from kvtier.connectors.vllm.slots import GroupCopy


def job(groups: list[tuple[list[int], list[int]]]) -> DeviceJob:
    moves = [
        GroupCopy(number, np.array(blocks), np.array(slots), np.zeros(len(blocks)))
        for number, (blocks, slots) in enumerate(groups)
    ]
    host = np.zeros((1, 1), dtype=np.uint8)
    return DeviceJob(job_id=1, kind=JobKind.LOAD, copies=moves, host=host, moved_bytes=0)


def test_jobs_conflict_over_a_shared_block_or_slot() -> None:
    mine = job([([1, 2], [9, 9]), ([3], [4])])
    for name, theirs, conflict in (
        ("separate", job([([5], [5])]), False),
        ("same block", job([([5, 2], [5, 6])]), True),
        ("same slot", job([([5], [9])]), True),
        # Groups share their tensors: a block number is one place in all groups.
        ("another group's block", job([([], []), ([1], [8])]), True),
        ("empty", job([]), False),
    ):
        assert mine.conflicts(theirs) is conflict, name
        assert theirs.conflicts(mine) is conflict, name


def test_job_priority_follows_from_its_kind() -> None:
    assert JobKind.STORE < JobKind.LOAD < JobKind.EXPEDITED_LOAD
