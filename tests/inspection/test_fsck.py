"""Runs of a check: interrupted, resumed, repaired, refused."""

import os
import threading
from pathlib import Path

import msgspec
import pytest

from kvtier.clock import VirtualClock
from kvtier.errors import InvalidSettings
from kvtier.inspection.fsck import CheckObserver, CheckOptions, Cursor, CursorKeeper, check_store
from kvtier.inspection.report import CheckReport
from kvtier.inspection.spaces import CURSOR_NAME
from kvtier.inspection.workers import Throttle
from kvtier.testing.samples import sample_space
from tests.inspection.stores import (
    BLOCK_BYTES,
    NAME,
    StoreFolder,
    flip,
    key_file,
    keys,
    spread,
)

VLLM = {"model_name": "m", "tokens_per_hash": 16, "blocks_per_file": 4}
EVERYTHING = CheckOptions()
WHOLE = 8
POSITIONS = WHOLE + 2
"""Files in the walk: the cursor itself comes first, the manifest last."""


class StoppingObserver(CheckObserver):
    """An observer that records its calls and stops the run after some files."""

    def __init__(self, throttle: Throttle | None = None, stop_after: int = 1 << 30) -> None:
        self.throttle = throttle
        self.left = stop_after
        self.resumptions: list[str] = []
        self.warnings: list[str] = []
        self.shares: list[float] = []

    def resumed(self, after: str, started_s: float) -> None:
        self.resumptions.append(after)

    def warned(self, text: str) -> None:
        self.warnings.append(text)

    def advanced(self, report: CheckReport, share: float) -> None:
        self.shares.append(share)
        self.left -= 1
        if self.left == 0 and self.throttle is not None:
            self.throttle.stop()


def run(
    store: StoreFolder, options: CheckOptions = EVERYTHING, stop_after: int = 1 << 30
) -> CheckReport:
    throttle = Throttle()
    return check_store(str(store.path), options, throttle, StoppingObserver(throttle, stop_after))


@pytest.fixture
def full(store: StoreFolder) -> StoreFolder:
    """Fill the store with WHOLE segments, of which the second and the last are broken."""
    for first in spread(WHOLE):
        store.fill(keys(4, int.from_bytes(first[:4], "big")))
    flip(store.file(spread(WHOLE)[1]), 5000)
    flip(store.file(spread(WHOLE)[-1]), 5000)
    return store


def same(report: CheckReport) -> dict:
    fields = msgspec.to_builtins(report)
    return {name: fields[name] for name in fields if name not in ("started_s", "resumed_after")}


@pytest.mark.parametrize("stop_after", range(1, POSITIONS + 1))
def test_interrupted_check_resumes_where_it_stopped(full: StoreFolder, stop_after: int) -> None:
    whole = run(full)
    assert whole.problems_found == 2
    first = run(full, stop_after=stop_after)
    assert (first.complete, first.segments) == (False, min(stop_after - 1, WHOLE))
    assert (full.path / CURSOR_NAME).exists()
    watched = StoppingObserver()
    second = check_store(str(full.path), CheckOptions(), Throttle(), watched)
    assert second.resumed_after == watched.resumptions[0] != ""
    assert same(second) == same(whole)
    assert len(watched.shares) == POSITIONS - stop_after, "no file is checked twice"
    assert watched.shares == sorted(watched.shares)
    assert not (full.path / CURSOR_NAME).exists()


def test_check_can_be_interrupted_repeatedly(full: StoreFolder) -> None:
    whole = run(full)
    runs = [run(full, stop_after=1) for _ in range(WHOLE)]
    assert not any(each.complete for each in runs)
    assert same(run(full)) == same(whole)


def test_error_during_a_check_loses_no_findings(full: StoreFolder) -> None:
    class Interrupts(StoppingObserver):
        def advanced(self, report: CheckReport, share: float) -> None:
            super().advanced(report, share)
            if len(self.shares) == 3:
                raise KeyboardInterrupt

    whole = run(full)
    with pytest.raises(KeyboardInterrupt):
        check_store(str(full.path), CheckOptions(), Throttle(), Interrupts())
    watched = StoppingObserver()
    assert same(check_store(str(full.path), CheckOptions(), Throttle(), watched)) == same(whole)
    assert len(watched.shares) == POSITIONS - 3


def test_cursor_can_be_kept_in_another_file(full: StoreFolder, tmp_path: Path) -> None:
    options = CheckOptions(cursor_path=tmp_path / "cursor")
    run(full, options, stop_after=3)
    assert options.cursor_path.exists()
    assert not (full.path / CURSOR_NAME).exists()
    assert run(full).resumed_after is None, "the cursor belongs to another place"
    assert run(full, options).resumed_after is not None
    assert not options.cursor_path.exists()


def test_from_start_ignores_the_cursor(full: StoreFolder) -> None:
    run(full, stop_after=3)
    report = run(full, CheckOptions(from_start=True))
    assert (report.resumed_after, report.segments) == (None, WHOLE)


def test_cursor_of_a_different_check_is_ignored(full: StoreFolder) -> None:
    run(full, stop_after=3)
    assert run(full, CheckOptions(repair=True), stop_after=2).resumed_after is None
    full.fill(keys(4), sample_space(block_bytes=BLOCK_BYTES, dtype="bfloat16"))
    assert run(full, CheckOptions(repair=True)).resumed_after is None


def test_cursor_is_saved_periodically(full: StoreFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = []
    real = CursorKeeper.save

    def save(keeper: CursorKeeper, cursor: Cursor) -> None:
        saved.append(cursor.after)
        real(keeper, cursor)

    monkeypatch.setattr(CursorKeeper, "save", save)
    clock = VirtualClock()

    class Slow(StoppingObserver):
        def advanced(self, report: CheckReport, share: float) -> None:
            clock.advance(4)

    check_store(str(full.path), CheckOptions(), Throttle(), Slow(), clock)
    assert len(saved) == 1 + POSITIONS // 3
    assert saved == sorted(saved)


def test_cursor_that_cannot_be_saved_is_a_warning(full: StoreFolder, tmp_path: Path) -> None:
    (full.path / CURSOR_NAME).mkdir()
    watched = StoppingObserver()
    report = check_store(str(full.path), CheckOptions(), Throttle(), watched)
    assert report.complete
    assert len(watched.warnings) == 2
    assert "name another file with --resume" in watched.warnings[0]
    with pytest.raises(InvalidSettings, match=r"--resume: .* cannot be written"):
        run(full, CheckOptions(cursor_path=tmp_path / "none" / "cursor"))


def test_resume_refuses_to_overwrite_another_file(full: StoreFolder, tmp_path: Path) -> None:
    mine = tmp_path / "thesis.txt"
    mine.write_text("years of work")
    with pytest.raises(
        InvalidSettings, match=r"--resume: .*thesis.txt is not the position of a check"
    ):
        run(full, CheckOptions(cursor_path=mine, from_start=True))
    assert mine.read_text() == "years of work"
    mine.unlink()
    run(full, CheckOptions(cursor_path=mine), stop_after=3)
    assert run(full, CheckOptions(cursor_path=mine, from_start=True)).segments == WHOLE


def test_repair_quarantines_broken_segments_and_removes_temporaries(full: StoreFolder) -> None:
    stale = full.plant(f"{NAME}/blocks/.tmp-old")
    os.utime(stale, (0, 0))
    fresh = full.plant(f"{NAME}/blocks/.tmp-new")
    mine = full.plant(f"{NAME}/blocks/mine")
    report = run(full, CheckOptions(repair=True))
    assert (report.clean, report.problems_found) == (False, 2)
    assert {each.repaired for each in report.problems} == {"quarantined"}
    assert {each.file.rpartition("/")[2]: each.repaired for each in report.notices} == {
        ".tmp-old": "removed",
        "mine": None,
    }
    assert not stale.exists()
    assert fresh.exists()
    assert mine.exists()
    assert len(list(full.path.glob("*/quarantine/*"))) == 2
    again = run(full)
    assert (again.clean, again.segments, again.quarantined) == (True, WHOLE - 2, 2)


def test_check_without_repair_changes_nothing(full: StoreFolder) -> None:
    os.utime(full.plant(f"{NAME}/blocks/.tmp-old"), (0, 0))
    before = {file: file.stat().st_mtime_ns for file in full.path.rglob("*") if file.is_file()}
    run(full)
    after = {file: file.stat().st_mtime_ns for file in full.path.rglob("*") if file.is_file()}
    assert after == before


def test_damaged_manifest_stays_a_problem_after_resuming(full: StoreFolder) -> None:
    other = full.fill(keys(4), sample_space(block_bytes=BLOCK_BYTES, model="a"))
    (full.path / other / "manifest.json").write_text("{")
    run(full, stop_after=3)
    report = run(full)
    assert report.resumed_after is not None
    assert [each.file for each in report.problems if each.kind == "manifest"] == [
        f"{other}/manifest.json"
    ]
    assert report.unverified == 1


def test_check_of_selected_key_spaces(full: StoreFolder) -> None:
    other = full.fill(keys(4), sample_space(block_bytes=BLOCK_BYTES, model="a"))
    full.plant("readme")
    report = run(full, CheckOptions(spaces=(other,)))
    assert (report.clean, report.segments, report.notices_found) == (True, 1, 0)


def test_keyed_segments_are_verified_with_the_secret(store: StoreFolder, tmp_path: Path) -> None:
    secret = key_file(tmp_path)
    store.fill(keys(8), key_file=secret)
    with pytest.raises(InvalidSettings, match="written with a secret that was not given"):
        run(store)
    options = CheckOptions(key_files=[secret])
    assert run(store, options).clean
    flip(store.file(keys(1)[0]), 5000)
    assert run(store, options).problems[0].kind == "checksum"


def test_foreign_trees_are_reported_as_unverifiable(full: StoreFolder) -> None:
    base = full.plant_tree(VLLM)
    report = run(full)
    assert [(each.file, each.kind) for each in report.notices] == [(base, "foreign")]
    assert "no checksums" in report.notices[0].reason


def test_concurrent_engines_and_evictors_cause_no_problems(store: StoreFolder) -> None:
    store.fill(spread(1))
    done = threading.Event()

    def work() -> None:
        number = 1
        while not done.is_set():
            blocks = keys(8, number % 50 << 20)
            store.fill(blocks)
            store.file(blocks[number % 2 * 4]).unlink()
            number += 1

    worker = threading.Thread(target=work)
    worker.start()
    try:
        reports = [run(store, CheckOptions(repair=True)) for _ in range(20)]
    finally:
        done.set()
        worker.join()
    assert [each.problems for each in reports] == [[]] * 20
    assert all(each.complete and each.notices == [] for each in reports)
    assert not list(store.path.glob("*/quarantine/*"))


def test_fsck_without_key_space_is_refused_with_the_fix(store: StoreFolder) -> None:
    with pytest.raises(InvalidSettings, match="no key space; is it mounted"):
        run(store)
    store.plant_tree(VLLM)
    with pytest.raises(InvalidSettings, match=r"only trees of other systems .*no checksums"):
        run(store)
