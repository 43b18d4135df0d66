"""The check of a whole store."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.clock import VirtualClock
from kvtier.errors import InvalidSettings
from kvtier.inspection import workers
from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.report import CheckReport
from kvtier.inspection.spaces import Secrets, StoreLayout, find_spaces
from kvtier.inspection.store_check import Repairs, StoreCheck, rules_for
from kvtier.inspection.view import Entry
from kvtier.inspection.workers import Stopped, Throttle
from kvtier.tiers.files import SystemCalls
from kvtier.tiers.shared.posix import PosixStore
from tests.inspection.stores import NAME, StoreFolder, flip, key_file, keys, spread

FILE_BYTES = 4096 + 4 * 12_288
PAYLOAD_BYTES = 4 * 12_288


class Checked:
    """Return a check of a store in its current state."""

    def __init__(self, store: StoreFolder, files: SystemCalls | None = None, **options) -> None:
        self.folder = FolderView(store.path, files)
        spaces = find_spaces(self.folder)
        self.report = CheckReport(path="kv", spaces=[each.name for each in spaces], started_s=0.0)
        self.check = StoreCheck(
            self.folder,
            StoreLayout(each.name for each in spaces),
            rules_for(spaces, Secrets()),
            self.report,
            **{"now_s": time.time(), **options},
        )

    def run(self, after: str = "") -> list[str]:
        try:
            return list(self.check.run(after))
        finally:
            self.folder.close()

    @property
    def problems(self) -> dict[str, str]:
        return {each.file: each.kind for each in self.report.problems}

    @property
    def notices(self) -> dict[str, str]:
        return {each.file: each.kind for each in self.report.notices}


def checked(store: StoreFolder, **options) -> Checked:
    found = Checked(store, **options)
    found.run()
    return found


def fill(store: StoreFolder, count: int = 6) -> None:
    for first in spread(count):
        number = int.from_bytes(first[:4], "big")
        store.fill(keys(4, number))


def test_intact_store_is_clean(store: StoreFolder) -> None:
    store.fill(keys(12), reads=1)
    report = checked(store).report
    assert (report.clean, report.complete) == (True, True)
    assert (report.segments, report.blocks, report.bytes) == (3, 12, 3 * FILE_BYTES)
    assert (report.problems, report.notices) == ([], [])


def test_every_problem_is_found(store: StoreFolder) -> None:
    fill(store)
    flip(store.file(spread(6)[1]), 5000)
    flip(store.file(spread(6)[2]), 20)
    os.truncate(store.file(spread(6)[3]), 100)
    store.file(spread(6)[4]).unlink()
    os.mkfifo(store.file(spread(6)[4]))
    good = store.file(spread(6)[5])
    good.rename(store.path / NAME / "blocks" / "000" / good.name)
    (store.path / NAME / "blocks" / "abc").symlink_to(store.path)
    found = checked(store)
    assert found.problems == {
        store.name(spread(6)[1]): "checksum",
        store.name(spread(6)[2]): "segment",
        store.name(spread(6)[3]): "segment",
        store.name(spread(6)[4]): "irregular",
        f"{NAME}/blocks/000/{good.name}": "misplaced",
        f"{NAME}/blocks/abc": "irregular",
    }
    assert found.report.segments == 4
    assert found.report.blocks == 4


def test_unknown_files_are_notices(store: StoreFolder) -> None:
    fill(store, 1)
    store.plant("readme")
    store.plant("backup/much/more")
    store.plant("other/x")
    store.plant("leases/all.1")
    store.plant(f"{NAME}/blocks/000/note.txt")
    store.plant(f"{NAME}/quarantine/00-host-1.kvt")
    (store.path / f"{NAME}/blocks/\x1b[2J").mkdir()
    found = checked(store, skipped=["other"])
    assert found.report.clean
    assert found.notices == {
        "readme": "unknown",
        "backup": "unknown",
        f"{NAME}/blocks/000/note.txt": "unknown",
        f"{NAME}/blocks/\\x1b[2J": "unknown",
    }
    assert found.report.quarantined == 1


def test_only_old_temporary_files_are_stale(store: StoreFolder) -> None:
    fill(store, 1)
    store.plant(f"{NAME}/blocks/.tmp-new")
    os.utime(store.plant(f"{NAME}/blocks/.tmp-old"), (0, time.time() - 3700))
    os.utime(store.plant(f"{NAME}/blocks/.tmp-ahead"), (0, time.time() + 3700))
    assert checked(store).notices == {f"{NAME}/blocks/.tmp-old": "temporary"}


def test_segments_without_a_manifest_are_not_verified(store: StoreFolder) -> None:
    fill(store, 2)
    (store.path / NAME / "manifest.json").unlink()
    report = checked(store).report
    assert (report.segments, report.unverified) == (0, 2)


def test_segments_removed_meanwhile_are_no_problem(
    store: StoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 2)
    found = Checked(store)
    entries = found.folder.entries

    def then_remove(name: str = "") -> list[Entry]:
        listed = list(entries(name))
        if name.endswith("blocks/000"):
            store.file(spread(1)[0]).unlink()
        return listed

    monkeypatch.setattr(found.folder, "entries", then_remove)
    found.run()
    assert (found.report.clean, found.report.vanished, found.report.segments) == (True, 1, 1)


def test_folder_that_cannot_be_listed_is_reported_once(
    store: StoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 2)
    found = Checked(store)
    entries = found.folder.entries

    def refuse(name: str = "") -> list[Entry]:
        if name.endswith("blocks/000"):
            raise OSError(errno.EIO, "Input/output error")
        return list(entries(name))

    monkeypatch.setattr(found.folder, "entries", refuse)
    list(found.check.run())
    found.run()
    assert found.problems == {f"{NAME}/blocks/000": "unreadable"}
    assert found.report.problems_found == 1


def test_check_resumes_after_every_position(store: StoreFolder) -> None:
    fill(store)
    store.plant("readme")
    whole = checked(store)
    positions = Checked(store).run()
    assert len(positions) == 6 + 2
    for number, position in enumerate(positions):
        rest = Checked(store)
        assert rest.run(position) == positions[number + 1 :]
        assert rest.report.segments <= whole.report.segments


def test_position_covers_what_the_report_counts(store: StoreFolder) -> None:
    fill(store)
    found = Checked(store, threads=3)
    run = found.check.run()
    counted = [(position, found.report.segments) for position in run]
    found.folder.close()
    assert [number for _, number in counted] == [1, 2, 3, 4, 5, 6, 6]
    assert counted[-1][0].endswith("manifest.json")


def test_walk_is_a_bounded_distance_ahead(
    store: StoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, 40)
    found = Checked(store, threads=1)
    walk, walked = found.folder.walk, []

    def counting(*arguments) -> Iterator[Entry]:
        for entry in walk(*arguments):
            if arguments[0] == "":  # `walk` calls itself for each folder
                walked.append(entry.position)
            yield entry

    monkeypatch.setattr(found.folder, "walk", counting)
    run = found.check.run()
    ahead = [len(walked) - done for done, _ in enumerate(run, start=1)]
    found.folder.close()
    assert len(ahead) == 41
    assert 0 < max(ahead) < 10


def test_closing_the_iterator_stops_the_check(store: StoreFolder) -> None:
    fill(store)
    found = Checked(store)
    run = found.check.run()
    next(run)
    del run  # closes the generator
    found.folder.close()
    assert not found.report.complete
    assert found.report.segments == 1


def test_throttle_stop_ends_the_check(store: StoreFolder) -> None:
    fill(store)
    throttle = Throttle()
    found = Checked(store, throttle=throttle)
    throttle.stop()
    with pytest.raises(Stopped):
        found.run()
    assert found.report.segments == 0


def test_throttle_stop_ends_a_check_while_storage_hangs(
    store: StoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a dead mount: results so far count, and the thread is abandoned."""
    monkeypatch.setattr(workers, "_NAPS", 2)
    monkeypatch.setattr(workers, "_NAP_S", 0.01)
    fill(store)
    mended, throttle = threading.Event(), Throttle()

    class Hanging(SystemCalls):
        def open(self, name: str, flags: int, folder_fd: int) -> int:
            if name == store.name(spread(6)[2]):
                throttle.stop()
                mended.wait()
            return super().open(name, flags, folder_fd)

    found = Checked(store, files=Hanging(), throttle=throttle, threads=1)
    with pytest.raises(Stopped):
        list(found.check.run())
    mended.set()
    for thread in threading.enumerate():
        if thread.name.startswith("kvtier-fsck"):
            thread.join()
    found.folder.close()
    assert not found.report.complete
    assert found.report.segments == 2


def test_check_keeps_to_the_rate(store: StoreFolder) -> None:
    clock = VirtualClock()
    fill(store)
    found = checked(store, throttle=Throttle(PAYLOAD_BYTES, clock), threads=1)
    assert found.report.segments == 6
    assert clock.now_s() == pytest.approx(5.0), "one segment per second; the first does not wait"


def test_segment_of_another_algorithm_is_not_repaired(store: StoreFolder, tmp_path: Path) -> None:
    """The manifest was replaced: it is unknown which side is right, so nothing is moved."""
    store.fill(keys(4), key_file=key_file(tmp_path))
    store.fill(keys(4, 1 << 20), key_file=key_file(tmp_path))
    (store.path / NAME / "manifest.json").unlink()
    elsewhere = StoreFolder(tmp_path / "elsewhere")
    elsewhere.path.mkdir()
    elsewhere.fill(keys(4))
    (elsewhere.path / NAME / "manifest.json").rename(store.path / NAME / "manifest.json")
    repairs = Repairs(PosixStore(store.path))
    found = checked(store, repairs=repairs)
    repairs.close()
    assert set(found.problems.values()) == {"algorithm"}
    assert [each.repaired for each in found.report.problems] == [None, None]
    assert "written with a secret" in found.report.problems[0].reason


def test_rules_for_refuses_a_missing_secret(store: StoreFolder, tmp_path: Path) -> None:
    secret = key_file(tmp_path)
    store.fill(keys(4), key_file=secret)
    folder = FolderView(store.path)
    with pytest.raises(InvalidSettings, match=r"--key-file"):
        rules_for(find_spaces(folder), Secrets())
    rules = rules_for(find_spaces(folder), Secrets([secret]))
    folder.close()
    assert list(rules) == [NAME]
