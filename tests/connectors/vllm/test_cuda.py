"""The CUDA copier's bookkeeping, over a fake driver that runs copies on demand.

The fake replaces only vLLM's platform and copy operation, which need a GPU.
"""

import contextlib
import ctypes
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("vllm.v1.kv_offload.cpu.host_register")

from kvtier.connectors.vllm import cuda
from kvtier.connectors.vllm.copier import DeviceJob, JobKind
from kvtier.connectors.vllm.slots import SlotLayout
from tests.connectors.vllm.caches import SHAPES, pages

SHAPE = SHAPES["padded pages"]


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.passed = False

    def record(self, stream: "Stream") -> None:
        stream.queue.append(("record", self))

    def query(self) -> bool:
        return self.passed

    def elapsed_time(self, other: "Event") -> float:
        return 2000.0

    def synchronize(self) -> None:
        while not self.passed:
            Driver.current.turn()


class Stream:
    def __init__(self) -> None:
        self.queue: list[tuple[str, object]] = []
        Driver.current.streams.append(self)

    def wait_stream(self, other: "Stream") -> None:
        self.queue.append(("wait_stream", other))

    def wait_event(self, event: Event) -> None:
        self.queue.append(("wait_event", event))


class Driver:
    """Streams that advance one operation per turn, the youngest stream first."""

    current: "Driver"

    def __init__(self) -> None:
        Driver.current = self
        self.streams: list[Stream] = []
        self.compute = Stream()
        self.active: Stream | None = None

    Stream = staticmethod(Stream)

    def is_xpu(self) -> bool:
        return False

    def current_stream(self) -> Stream:
        return self.active or self.compute

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.active = stream
        yield
        self.active = None

    def swap_blocks_batch(
        self, src: object, dst: object, sizes: object, is_src_access_order_any: bool = False
    ) -> None:
        assert self.active is not None
        self.active.queue.append(("copy", (src, dst, sizes)))

    def turn(self) -> None:
        for stream in reversed(self.streams):
            if not stream.queue:
                continue
            verb, what = stream.queue[0]
            if (isinstance(what, Stream) and what.queue) or (
                verb == "wait_event" and isinstance(what, Event) and not what.passed
            ):
                continue
            stream.queue.pop(0)
            if verb == "record" and isinstance(what, Event):
                what.passed = True
            elif verb == "copy" and isinstance(what, tuple):
                for source, target, size in zip(*(t.tolist() for t in what), strict=True):
                    ctypes.memmove(target, source, size)
            return
        raise AssertionError("deadlock: the streams wait for each other")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(cuda, "current_platform", driver)
    monkeypatch.setattr(cuda, "ops", driver)
    monkeypatch.setattr("torch.Event", Event)
    return driver


class Stage:
    def __init__(self) -> None:
        self.caches = SHAPE.build()
        self.layout = SlotLayout.from_caches(
            self.caches, blocks_per_chunk=1, slice_bytes=SHAPE.worker_bytes_per_block, rank=0
        )
        self.host = np.zeros((8, 4096), dtype=np.uint8)
        self.copier = cuda.CudaCopier(self.layout)

    def submit(self, job_id: int, kind: JobKind, blocks: list[int], slots: list[int]) -> None:
        moves = self.layout.expand(blocks, [len(blocks)], [0], slots)
        self.copier.submit(
            DeviceJob(job_id=job_id, kind=kind, copies=moves, host=self.host, moved_bytes=1)
        )


def test_cuda_store_and_load_copy_bytes_and_report_once(driver: Driver) -> None:
    stage = Stage()
    expected = [pages(stage.caches, 0, block) for block in (3, 5)]
    stage.submit(1, JobKind.STORE, [3, 5], [6, 2])
    assert stage.copier.poll() == []
    stage.copier.wait([1, 99])
    (stored,) = stage.copier.poll()
    assert (stored.job_id, stored.copied, stored.seconds) == (1, True, 2.0)
    stage.submit(2, JobKind.LOAD, [9, 10], [6, 2])
    stage.copier.close()
    assert [pages(stage.caches, 0, block) for block in (9, 10)] == expected
    assert stage.copier.poll() == []


def test_cuda_conflicting_jobs_keep_order_across_streams(driver: Driver) -> None:
    stage = Stage()
    one, two = (pages(stage.caches, 0, block) for block in (1, 2))
    stage.submit(1, JobKind.STORE, [1, 2], [0, 1])
    # The driver runs the youngest stream first, so only the waits keep the loads behind the store.
    stage.submit(2, JobKind.EXPEDITED_LOAD, [1], [1])
    stage.submit(3, JobKind.LOAD, [2], [0])
    stage.copier.wait([1, 2, 3])
    assert (pages(stage.caches, 0, 1), pages(stage.caches, 0, 2)) == (two, one)
    stage.copier.close()


def test_cuda_job_starts_after_engine_work(driver: Driver) -> None:
    stage = Stage()
    written = Event()
    written.record(driver.compute)
    stage.submit(1, JobKind.STORE, [1], [0])
    stage.copier.wait([1])
    assert written.passed
    stage.copier.close()


def test_cuda_copy_rejected_by_driver_is_reported(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no device")

    monkeypatch.setattr(driver, "swap_blocks_batch", refuse)
    stage.submit(1, JobKind.STORE, [1], [0])
    (finished,) = stage.copier.poll()
    assert (finished.job_id, finished.copied) == (1, False)
    caplog.clear()
    stage.copier.close()


def test_cuda_arena_is_pinned_in_pieces_and_unpinned_on_close(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: dict[int, int] = {}

    def register(address: int, size: int) -> bool:
        pinned[address] = size
        return True

    monkeypatch.setattr(cuda, "host_register", register)
    monkeypatch.setattr(cuda, "host_unregister", pinned.pop)
    monkeypatch.setattr(cuda, "_PIN_STEP_BYTES", 3 * 4096)
    stage = Stage()
    stage.copier.attach(stage.host)
    for pinner in stage.copier._pinners:
        pinner.join()
    base = stage.host.ctypes.data
    assert pinned == {
        base: 3 * 4096,
        base + 3 * 4096: 3 * 4096,
        base + 6 * 4096: 2 * 4096,
    }
    stage.copier.close()
    assert pinned == {}
