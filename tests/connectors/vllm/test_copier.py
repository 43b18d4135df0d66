import numpy as np
import pytest

from kvtier.connectors.vllm.copier import Job, Verb
from kvtier.connectors.vllm.slots import GroupMoves


def job(groups: list[tuple[list[int], list[int]]]) -> Job:
    moves = [
        GroupMoves(number, np.array(blocks), np.array(slots), np.zeros(len(blocks)))
        for number, (blocks, slots) in enumerate(groups)
    ]
    host = np.zeros((1, 1), dtype=np.uint8)
    return Job(job_id=1, verb=Verb.LOAD, moves=moves, host=host, moved_bytes=0)


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
def test_jobs_conflict_over_a_shared_block_or_slot(theirs: Job, conflict: bool) -> None:
    mine = job([([1, 2], [9, 9]), ([3], [4])])
    assert mine.conflicts(theirs) is conflict
    assert theirs.conflicts(mine) is conflict


def test_who_waits_for_a_job_decides_its_priority() -> None:
    assert Verb.STORE < Verb.LOAD < Verb.LOAD_AT_ONCE
