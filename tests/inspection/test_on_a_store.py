"""Surveys and checks of a store in RAM; `test_on_a_bucket` uses a real server."""

import errno

import numpy as np
import pytest

from kvtier.clock import VirtualClock
from kvtier.errors import InvalidSettings
from kvtier.evictor.evictor import Evictor
from kvtier.evictor.options import EvictorFlags, read_options
from kvtier.inspection import surveyor
from kvtier.inspection.fsck import CheckObserver, CheckOptions, check_view
from kvtier.inspection.report import CheckReport
from kvtier.inspection.spaces import STORE_CURSOR_NAME, Secrets
from kvtier.inspection.survey import Survey
from kvtier.inspection.surveyor import Surveyor
from kvtier.inspection.workers import Throttle
from kvtier.testing.memory_store import MemoryStore
from kvtier.testing.samples import sample_space
from kvtier.tiers.shared.reading import QUARANTINE_FILES
from kvtier.tiers.shared.store import Read, Stat
from tests.inspection.buckets import fill, name_of, spoil, view_of
from tests.inspection.stores import BLOCK_BYTES, NAME, SPACE, keys, spread

FILE_BYTES = 4096 + 4 * 12_288
EVERYTHING = CheckOptions()


class StoppingObserver(CheckObserver):
    """An observer that records its calls and stops the run after some files."""

    def __init__(self, throttle: Throttle, after: int) -> None:
        self._throttle, self._left = throttle, after
        self.resumed_after: list[str] = []
        self.warnings: list[str] = []

    def resumed(self, after: str, started_s: float) -> None:
        self.resumed_after.append(after)

    def warned(self, text: str) -> None:
        self.warnings.append(text)

    def advanced(self, report: CheckReport, share: float) -> None:
        self._left -= 1
        if self._left == 0:
            self._throttle.stop()


def checked(
    store: MemoryStore, options: CheckOptions = EVERYTHING, stop_after: int = 1 << 30
) -> CheckReport:
    throttle = Throttle()
    return check_view(view_of(store), options, throttle, StoppingObserver(throttle, stop_after))


def surveyed(store: MemoryStore, **options) -> Survey:
    made = Surveyor(view_of(store), Secrets(), lambda name, share: None)
    return made.survey(**{"now_s": 0.0, **options})


@pytest.fixture
def store() -> MemoryStore:
    """Return a store with eight segments, of which the second and the last are broken."""
    made = MemoryStore()
    for first in spread(8):
        fill(made, keys(4, int.from_bytes(first[:4], "big")))
    spoil(made, spread(8)[1], 5000)
    spoil(made, spread(8)[-1], 20)
    return made


def test_survey_of_a_store(store: MemoryStore) -> None:
    other = fill(store, keys(4), sample_space(block_bytes=BLOCK_BYTES, dtype="bfloat16"))
    fill(store, keys(4), reads=3)
    store.put("readme", b"")
    store.put("backup/1/2", b"")
    store.put("leases/0.0000000001", b"")
    survey = surveyed(store)
    assert (survey.path, survey.file_system) == ("memory://kv", None)
    spaces = {space.name: space for space in survey.spaces}
    assert set(spaces) == {NAME, other}
    space = spaces[NAME]
    assert (space.space, space.blocks, space.odd_lengths, space.journals) == (SPACE, 32, 0, 3)
    assert space.segments.nominal_bytes == space.segments.physical_bytes == 8 * FILE_BYTES
    assert [(chain.reads, chain.blocks) for chain in space.hottest] == [(3, 4)]
    assert {each.name: each.what for each in survey.unknown} == {
        "readme": "file",
        "backup": "folder",
    }
    assert (survey.leases, survey.temporaries.files) == (1, 0)
    assert survey.differing[0].fields.keys() == {"dtype"}


def test_survey_counts_reads_that_an_evictor_folded(store: MemoryStore) -> None:
    """The counts are equal before and after folding, and when there are new reads."""
    fill(store, keys(4), reads=3)
    before = surveyed(store).spaces[0]
    options = read_options(EvictorFlags(path="", high="1TiB"), None)
    evictor = Evictor(store, options)
    evictor.run_once()
    evictor.close()
    folded = surveyed(store).spaces[0]
    assert (before.journals, before.summaries) == (3, 0)
    assert (folded.journals, folded.summaries) == (0, 1)
    assert folded.hottest == before.hottest
    assert before.hottest[0].reads == 3
    fill(store, keys(4), reads=2)
    both = surveyed(store).spaces[0]
    assert (both.journals, both.hottest[0].reads) == (2, 5)


def test_survey_names_a_bounded_number_of_unreadable_files(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveyor, "UNREADABLE_KEPT", 2)

    class Refusing(MemoryStore):
        def stat(self, name: str) -> Stat | None:
            if name.endswith(".log"):
                raise OSError(errno.EACCES, "the server said 403")
            return super().stat(name)

    fill(store, keys(4), reads=3)
    refusing = Refusing()
    refusing._files = store._files
    survey = surveyed(refusing)
    assert (survey.unreadable_found, len(survey.unreadable)) == (3, 2)
    assert survey.unreadable[0].what == "the server said 403"


def test_check_verifies_every_block(store: MemoryStore) -> None:
    report = checked(store)
    assert (report.complete, report.segments, report.blocks) == (True, 8, 24)
    assert {each.file: each.kind for each in report.problems} == {
        name_of(spread(8)[1]): "checksum",
        name_of(spread(8)[-1]): "segment",
    }
    assert store.stat(STORE_CURSOR_NAME) is None


@pytest.mark.parametrize("stop_after", range(1, 10))
def test_check_resumes_where_it_stopped(store: MemoryStore, stop_after: int) -> None:
    whole = checked(store)
    first = checked(store, stop_after=stop_after)
    assert not first.complete
    assert store.stat(STORE_CURSOR_NAME) is not None
    second = checked(store)
    assert second.resumed_after is not None
    assert (second.segments, second.problems) == (whole.segments, whole.problems)
    assert store.stat(STORE_CURSOR_NAME) is None


def test_check_keeps_to_the_rate(store: MemoryStore) -> None:
    clock = VirtualClock()
    options = CheckOptions(threads=1)
    check_view(view_of(store), options, Throttle(4 * 12_288, clock), CheckObserver())
    assert clock.now_s() == pytest.approx(7.0), (
        "seven whole segments, one of them twice; the first does not wait"
    )


def test_repair_of_a_store(store: MemoryStore) -> None:
    store.put(f"{NAME}/blocks/mine", b"")
    names = {entry.name for entry in store.list("").entries}
    report = checked(store, CheckOptions(repair=True))
    assert [each.repaired for each in report.problems] == ["quarantined"] * 2
    left = {entry.name for entry in store.list("").entries}
    moved = names - left
    assert moved == {name_of(spread(8)[1]), name_of(spread(8)[-1])}
    assert len(left) == len(names), "no other file was removed or left behind"
    assert checked(store).clean


def test_check_without_repair_changes_nothing(store: MemoryStore) -> None:
    before = store.list("").entries
    checked(store)
    surveyed(store)
    assert store.list("").entries == before


def test_check_works_without_write_permission(store: MemoryStore) -> None:
    class ReadOnly(MemoryStore):
        def put(self, name: str, data: bytes) -> Stat:
            raise OSError(errno.EACCES, "the server said 403")

    locked = ReadOnly()
    locked._files = store._files
    throttle = Throttle()
    watched = StoppingObserver(throttle, 1 << 30)
    report = check_view(view_of(locked), CheckOptions(), throttle, watched)
    assert (report.complete, report.segments) == (True, 8)
    assert "name another file with --resume" in watched.warnings[0]
    stopped = StoppingObserver(throttle, 3)
    assert not check_view(view_of(locked), CheckOptions(), throttle, stopped).complete
    assert len(stopped.warnings) == 1, "one warning for all failed saves"
    throttle = Throttle()
    with pytest.raises(InvalidSettings, match="403"):
        check_view(view_of(locked), CheckOptions(repair=True), throttle, watched)


def test_failed_save_of_the_cursor_is_retried(store: MemoryStore) -> None:
    class Busy(MemoryStore):
        left = 1

        def put(self, name: str, data: bytes) -> Stat:
            if self.left:
                self.left -= 1
                raise OSError(errno.EBUSY, "the server said 503")
            return super().put(name, data)

    busy = Busy()
    busy._files = store._files
    throttle = Throttle()
    watched = StoppingObserver(throttle, 3)
    check_view(view_of(busy), CheckOptions(), throttle, watched)
    assert len(watched.warnings) == 1
    assert checked(busy).resumed_after is not None


class FailingStore(MemoryStore):
    """A store whose next reads of blocks fail, with an error or without an answer."""

    number = errno.EIO
    left = 0

    def read(self, name: str, offset: int, buffers) -> Read | None:
        if offset and self.left:
            self.left -= 1
            raise OSError(self.number, "no")
        return super().read(name, offset, buffers)


@pytest.fixture
def failing(store: MemoryStore) -> FailingStore:
    made = FailingStore()
    made._files = store._files
    return made


def test_unreachable_server_ends_a_check_that_can_resume(failing: FailingStore) -> None:
    """Files that could not be read are not reported as problems."""
    whole = checked(failing)
    checked(failing, stop_after=3)
    failing.number, failing.left = errno.ETIMEDOUT, 1 << 30
    with pytest.raises(InvalidSettings, match="cannot be checked: no; fix that, then run the same"):
        checked(failing)
    failing.left = 0
    report = checked(failing)
    assert report.resumed_after is not None
    assert (report.problems, report.segments) == (whole.problems, whole.segments)


@pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT])
def test_failed_read_is_retried_once(failing: FailingStore, number: int) -> None:
    failing.number, failing.left = number, 1
    kinds = {each.file: each.kind for each in checked(failing, CheckOptions(threads=1)).problems}
    first = {name_of(spread(8)[0]): "unsteady"} if number == errno.EIO else {}
    assert kinds == {name_of(spread(8)[1]): "checksum", name_of(spread(8)[-1]): "segment", **first}


def test_file_that_fails_twice_is_reported(failing: FailingStore) -> None:
    failing.left = 2
    report = checked(failing, CheckOptions(threads=1))
    assert [each.kind for each in report.problems] == ["unreadable", "checksum", "segment"]
    assert report.segments == 8


def test_segment_intact_at_the_second_read_is_kept(store: MemoryStore) -> None:
    class Noisy(MemoryStore):
        """Flip one bit of the first read."""

        lost = 1

        def read(self, name: str, offset: int, buffers) -> Read | None:
            found = super().read(name, offset, buffers)
            if offset and self.lost:
                self.lost = 0
                buffers[0][77] ^= 1
            return found

    noisy = Noisy()
    fill(noisy, keys(4))
    report = checked(noisy, CheckOptions(repair=True))
    assert [(each.kind, each.repaired) for each in report.problems] == [("unsteady", None)]
    assert "damaged: 0 (1 of 4)" in report.problems[0].reason
    assert noisy.stat(name_of(keys(1)[0])) is not None


def test_file_replaced_while_reading_counts_as_vanished() -> None:
    class Replacing(MemoryStore):
        def read(self, name: str, offset: int, buffers) -> Read | None:
            if offset:
                content = bytes(self.raw(name))
                self.remove(name)
                self.publish(name, [np.frombuffer(content, np.uint8)])
            return super().read(name, offset, buffers)

    store = Replacing()
    fill(store, keys(4))
    report = checked(store, CheckOptions(repair=True))
    assert (report.clean, report.vanished) == (True, 1)


def test_repair_removes_segments_beyond_the_quarantine_limit() -> None:
    store = MemoryStore()
    many = spread(QUARANTINE_FILES + 3)
    for first in many:
        fill(store, keys(4, int.from_bytes(first[:4], "big")))
        spoil(store, first, 20)
    report = checked(store, CheckOptions(repair=True))
    done = [each.repaired for each in report.problems]
    assert done.count("quarantined") == QUARANTINE_FILES
    assert set(done) == {"quarantined", "removed, the quarantine is full"}
