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


def test_without_a_fault_it_is_the_store_inside(bucket: Bucket) -> None:
    assert bucket.store.publish(NAME, [DATA])
    assert not bucket.store.publish(NAME, [DATA])
    assert bucket.read() == bytes(DATA)
    assert bucket.store.move(NAME, "b")
    assert bucket.store.stat(NAME) is None
    assert [each.name for each in bucket.store.list("").entries] == ["b"]
    assert bucket.store.remove("b")
    assert isinstance(bucket.store, Store)


@pytest.mark.parametrize("fault", EVERYTHING_SPOILT)
def test_what_is_published_is_not_what_is_kept(bucket: Bucket, fault: FaultKind) -> None:
    bucket.faults.arm(fault, 1.0, limit=1)
    assert bucket.store.publish(NAME, [DATA])
    assert bytes(bucket.inner.raw(NAME)) != bytes(DATA)
    assert len(DATA) == 200
    assert DATA[7] == 7, "the caller's memory is its own"


@pytest.mark.parametrize("fault", EVERYTHING_SPOILT)
def test_of_nothing_nothing_can_be_spoilt(bucket: Bucket, fault: FaultKind) -> None:
    bucket.faults.arm(fault, 1.0)
    assert bucket.store.put(NAME, b"").size == 0
    assert bucket.store.publish("other", [])
    assert bucket.faults.happened == 0


@pytest.mark.parametrize(
    "fault", [FaultKind.TRUNCATED, FaultKind.OVER_LONG, FaultKind.BIT_FLIP, FaultKind.PARTIAL]
)
def test_what_is_read_is_not_what_was_published(bucket: Bucket, fault: FaultKind) -> None:
    bucket.store.publish(NAME, [DATA])
    bucket.faults.arm(fault, 1.0, limit=1)
    try:
        assert bucket.read() != bytes(DATA)
    except OSError:
        assert fault is FaultKind.PARTIAL


def test_an_answer_gets_lost_after_the_deed(bucket: Bucket) -> None:
    for seed in range(40):
        bucket.faults.rng.seed(seed)
        bucket.faults.arm(FaultKind.IO_ERROR, 0.5, limit=1)
        try:
            bucket.store.publish(f"{seed}", [DATA])
        except OSError:
            if bucket.inner.stat(f"{seed}") is not None:
                return
    pytest.fail("a refused request never did its work")


def test_stale_answers(bucket: Bucket) -> None:
    bucket.store.publish(NAME, [DATA])
    listed, stat = bucket.store.list("space"), bucket.store.stat(NAME)
    bucket.store.remove(NAME)
    bucket.faults.arm(FaultKind.STALE_LISTING, 1.0)
    assert bucket.store.list("space") == listed
    assert bucket.store.stat(NAME) == stat
    bucket.inner.publish(NAME, [DATA])
    assert bucket.read() is None


def test_everything_is_removed_by_a_stranger(bucket: Bucket) -> None:
    bucket.store.publish(NAME, [DATA])
    bucket.faults.arm(FaultKind.FOLDER_REMOVED, 1.0, limit=1)
    assert bucket.read() is None


def test_the_stores_clock_is_wrong(bucket: Bucket) -> None:
    bucket.store.publish(NAME, [DATA])
    bucket.faults.arm(FaultKind.CLOCK_STEP, 1.0)
    shown = bucket.store.stat(NAME)
    assert shown is not None
    assert shown.modified_s != bucket.inner.stat(NAME).modified_s  # type: ignore[union-attr]


def test_a_page_may_end_early_and_goes_on(bucket: Bucket) -> None:
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
    pytest.fail("no page ended early")
