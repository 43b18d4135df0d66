import numpy as np
import pytest

from kvtier.testing.memory_store import MemoryStore
from kvtier.tiers.shared.store import Store
from kvtier_bench.faults.faults import FaultKind, Faults
from kvtier_bench.faults.store import FaultyStore

NAME = "space/blocks/a.kvt"
DATA = np.arange(200, dtype=np.uint8)
EVERYTHING_SPOILT = [
    FaultKind.TORN_WRITE,
    FaultKind.TRUNCATED,
    FaultKind.OVER_LONG,
    FaultKind.BIT_FLIP,
]


class Bucket:
    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.faults = Faults(5)
        self.store = FaultyStore(self.inner, self.faults)

    def read(self) -> bytes | None:
        buffer = np.zeros(8192, np.uint8)
        read = self.store.read(NAME, 0, [buffer])
        return None if read is None else bytes(buffer[: read.filled_bytes])


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


def test_store_without_fault_behaves_as_the_inner_store(bucket: Bucket) -> None:
    assert bucket.store.publish(NAME, [DATA])
    assert not bucket.store.publish(NAME, [DATA])
    assert bucket.read() == bytes(DATA)
    assert bucket.store.move(NAME, "b")
    assert bucket.store.stat(NAME) is None
    assert [each.name for each in bucket.store.list("").entries] == ["b"]
    assert bucket.store.remove("b")
    assert isinstance(bucket.store, Store)


@pytest.mark.parametrize("fault", EVERYTHING_SPOILT)
def test_publish_faults_damage_the_object(bucket: Bucket, fault: FaultKind) -> None:
    bucket.faults.arm(fault, 1.0, limit=1)
    assert bucket.store.publish(NAME, [DATA])
    assert bytes(bucket.inner.raw(NAME)) != bytes(DATA)
    assert len(DATA) == 200
    assert DATA[7] == 7, "the caller's buffer was changed"


@pytest.mark.parametrize("fault", EVERYTHING_SPOILT)
def test_empty_object_is_not_damaged(bucket: Bucket, fault: FaultKind) -> None:
    bucket.faults.arm(fault, 1.0)
    assert bucket.store.put(NAME, b"").size == 0
    assert bucket.store.publish("other", [])
    assert bucket.faults.happened == 0


@pytest.mark.parametrize(
    "fault", [FaultKind.TRUNCATED, FaultKind.OVER_LONG, FaultKind.BIT_FLIP, FaultKind.PARTIAL]
)
def test_read_faults_return_other_bytes(bucket: Bucket, fault: FaultKind) -> None:
    bucket.store.publish(NAME, [DATA])
    bucket.faults.arm(fault, 1.0, limit=1)
    try:
        assert bucket.read() != bytes(DATA)
    except OSError:
        assert fault is FaultKind.PARTIAL


def test_answer_can_get_lost_after_the_operation(bucket: Bucket) -> None:
    for seed in range(40):
        bucket.faults.rng.seed(seed)
        bucket.faults.arm(FaultKind.IO_ERROR, 0.5, limit=1)
        try:
            bucket.store.publish(f"{seed}", [DATA])
        except OSError:
            if bucket.inner.stat(f"{seed}") is not None:
                return
    pytest.fail("no request was executed and then refused")


def test_stale_listing_and_status_are_outdated(bucket: Bucket) -> None:
    bucket.store.publish(NAME, [DATA])
    listed, stat = bucket.store.list("space"), bucket.store.stat(NAME)
    bucket.store.remove(NAME)
    bucket.faults.arm(FaultKind.STALE_LISTING, 1.0)
    assert bucket.store.list("space") == listed
    assert bucket.store.stat(NAME) == stat
    bucket.inner.publish(NAME, [DATA])
    assert bucket.read() is None


def test_folder_removed_fault_removes_all_objects(bucket: Bucket) -> None:
    bucket.store.publish(NAME, [DATA])
    bucket.faults.arm(FaultKind.FOLDER_REMOVED, 1.0, limit=1)
    assert bucket.read() is None


def test_clock_step_changes_an_objects_time(bucket: Bucket) -> None:
    bucket.store.publish(NAME, [DATA])
    bucket.faults.arm(FaultKind.CLOCK_STEP, 1.0)
    shown = bucket.store.stat(NAME)
    assert shown is not None
    assert shown.modified_s != bucket.inner.stat(NAME).modified_s  # type: ignore[union-attr]


def test_page_that_ends_early_can_be_continued(bucket: Bucket) -> None:
    for number in range(4):
        bucket.inner.publish(f"{number}", [DATA])
    for seed in range(20):
        bucket.faults.rng.seed(seed)
        bucket.faults.arm(FaultKind.PARTIAL, 0.5, limit=1)
        try:
            page = bucket.store.list("")
        except OSError:
            continue
        if page.after is not None:
            bucket.faults.disarm()
            rest = bucket.store.list("", page.after)
            names = [each.name for each in page.entries + rest.entries]
            assert names == ["0", "1", "2", "3"]
            return
    pytest.fail("no page of the listing ended early")
