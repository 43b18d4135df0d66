from collections import deque

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm.v1.kv_offload.base")

from kvtier.connectors.vllm.copier import DeviceJob, JobKind
from kvtier.connectors.vllm.cpu import HostCopier, insert_by_priority
from kvtier.connectors.vllm.slots import GroupCopy, SlotLayout
from tests.connectors.vllm.caches import SHAPES


def job(job_id: int, kind: JobKind, blocks: list[int], slots: list[int]) -> DeviceJob:
    moves = [
        GroupCopy(
            0,
            np.array(blocks, dtype=np.int64),
            np.array(slots, dtype=np.int64),
            np.zeros(len(blocks), dtype=np.int64),
        )
    ]
    host = np.zeros((16, 256), dtype=np.uint8)
    return DeviceJob(job_id=job_id, kind=kind, copies=moves, host=host, moved_bytes=0)


def order(jobs: list[DeviceJob]) -> list[int]:
    queue: deque[DeviceJob] = deque()
    for one in jobs:
        insert_by_priority(queue, one)
    return [one.job_id for one in queue]


def test_queue_orders_expedited_loads_before_loads_before_stores() -> None:
    jobs = [
        job(1, JobKind.STORE, [1], [1]),
        job(2, JobKind.STORE, [2], [2]),
        job(3, JobKind.LOAD, [3], [3]),
        job(4, JobKind.LOAD, [4], [4]),
        job(5, JobKind.EXPEDITED_LOAD, [5], [5]),
        job(6, JobKind.STORE, [6], [6]),
    ]
    assert order(jobs) == [5, 3, 4, 1, 2, 6]


@pytest.mark.parametrize(("blocks", "slots"), [([2], [9]), ([9], [2])], ids=["block", "slot"])
def test_load_does_not_overtake_conflicting_store(blocks: list[int], slots: list[int]) -> None:
    stores = [job(n, JobKind.STORE, [n], [n]) for n in (1, 2, 3)]
    assert order([*stores, job(4, JobKind.LOAD, blocks, slots)]) == [1, 2, 4, 3]


@pytest.mark.parametrize(
    ("shape", "runs"),
    [
        ("one group, constant stride", [1]),
        ("separately allocated", [4]),
        ("two groups over the same tensors", [1, 1]),
        # Tensors 0 | 2, 3 (the step from 0 to 2 does not repeat), then pages of two sizes.
        ("uneven groups and strides", [2, 2]),
    ],
)
def test_pages_at_constant_stride_form_one_run(shape: str, runs: list[int]) -> None:
    caches = SHAPES[shape].build()
    layout = SlotLayout.from_caches(
        caches,
        blocks_per_chunk=1,
        slice_bytes=SHAPES[shape].worker_bytes_per_block,
        rank=0,
    )
    copier = HostCopier(layout, caches)
    found = [len(group) for group in copier._groups]
    copier.close()
    assert found == runs


def test_submit_after_close_discards_job() -> None:
    caches = SHAPES["one group, constant stride"].build()
    layout = SlotLayout.from_caches(caches, blocks_per_chunk=1, slice_bytes=256, rank=0)
    copier = HostCopier(layout, caches)
    copier.close()
    copier.submit(job(1, JobKind.STORE, [1], [1]))
    copier.wait([1])
    assert copier.poll() == []


def test_close_waits_for_running_copy() -> None:
    caches = SHAPES["one group, constant stride"].build()
    layout = SlotLayout.from_caches(caches, blocks_per_chunk=1, slice_bytes=256, rank=0)
    copier = HostCopier(layout, caches)
    copier.submit(job(1, JobKind.STORE, [1] * 50_000, [1] * 50_000))
    copier.close()
    assert not copier._thread.is_alive()
