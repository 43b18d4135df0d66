import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvtier.cli.fsck import ProgressObserver
from kvtier.cli.main import kvtier
from kvtier.clock import VirtualClock
from kvtier.inspection import workers
from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.report import CheckReport, Finding
from kvtier.inspection.spaces import CURSOR_NAME
from kvtier.inspection.view import Entry
from tests.inspection.stores import NAME, StoreFolder, flip, keys, spread


@pytest.fixture
def store(tmp_path: Path) -> StoreFolder:
    (tmp_path / "kv").mkdir()
    found = StoreFolder(tmp_path / "kv")
    for first in spread(4):
        found.fill(keys(4, int.from_bytes(first[:4], "big")))
    return found


def fsck(*arguments: str):
    return CliRunner().invoke(kvtier, ["fsck", *arguments])


def test_fsck_of_clean_store_exits_with_0(store: StoreFolder) -> None:
    ran = fsck(str(store.path))
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"{store.path}: clean (4 segments, 16 intact blocks, 208.0KiB")


def test_fsck_names_problems_and_exits_with_1(store: StoreFolder) -> None:
    flip(store.file(spread(4)[2]), 5000)
    store.plant("readme")
    ran = fsck(str(store.path), "--rate", "1GiB/s")
    assert ran.exit_code == 1
    lines = ran.stdout.splitlines()
    assert f"problem: {store.name(spread(4)[2])}: blocks damaged: 0 (1 of 4)" in lines
    assert "notice: readme: a file that is not kvtier's; left alone" in lines
    assert ": 1 problems (4 segments, 12 intact blocks" in lines[-1]


def test_fsck_repair_reports_what_it_did(store: StoreFolder) -> None:
    flip(store.file(spread(4)[2]), 5000)
    os.utime(store.plant(f"{NAME}/.tmp-x"), (0, 0))
    ran = fsck(str(store.path), "--repair")
    assert ran.exit_code == 1
    assert "(1 of 4) [quarantined]\n" in ran.stdout
    assert " h [removed]\n" in ran.stdout
    assert ran.stderr == "", "the log does not say it again"
    assert logging.getLogger("kvtier.tiers.shared").level == logging.NOTSET
    assert fsck(str(store.path)).exit_code == 0


def test_fsck_json_is_only_output(store: StoreFolder) -> None:
    flip(store.file(spread(4)[2]), 5000)
    ran = fsck(str(store.path), "--json")
    assert ran.exit_code == 1
    report = json.loads(ran.stdout)
    assert (report["complete"], report["clean"], report["segments"]) == (True, False, 4)
    assert [each["file"] for each in report["problems"]] == [store.name(spread(4)[2])]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["none"], "does not exist"),
        (["file"], "is not a folder"),
        (["kv/x"], "holds no key space; is it mounted?"),
        ([f"kv/{NAME}"], "is one key space of a store"),
        (["kv", "--rate", "fast"], "--rate: 'fast' is not a size"),
        (["kv", "--resume", "none/x"], "--resume: none/x cannot be written"),
        (["kv", "--key-file", "none"], "--key-file: none cannot be read"),
    ],
)
def test_fsck_refuses_bad_input_in_one_line(
    store: StoreFolder, arguments: list[str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.path.parent)
    Path("file").touch()
    (store.path / "x").mkdir()
    ran = fsck(*arguments)
    assert (ran.exit_code, ran.stdout) == (2, "")
    last = ran.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert error in last


def test_fsck_refuses_newer_format(store: StoreFolder) -> None:
    manifest = store.path / NAME / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    ran = fsck(str(store.path))
    assert ran.exit_code == 2
    assert "upgrade it" in ran.stderr


def test_progress_observer_reports_progress_and_problems(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = VirtualClock()
    observer = ProgressObserver(as_json=False, clock=clock)
    clock.advance(100)
    report = CheckReport(path="kv", spaces=[], started_s=0.0, segments=1234, bytes=1 << 30)
    report.add(Finding(file="a", kind="segment", reason="short"))
    observer.advanced(report, 0.25)
    told = capsys.readouterr()
    assert told.err == "25%: 1,234 segments, 1.0GiB, 1 problems\n"
    assert told.out == "problem: a: short\n"


def test_fsck_is_interrupted_while_mount_hangs(
    store: StoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_NAPS", 2)
    mended, walk, sent = threading.Event(), FolderView.walk, threading.Event()

    def hang(folder: FolderView, *arguments) -> Iterator[Entry]:
        if not sent.is_set():  # it calls itself for each folder
            sent.set()
            os.kill(os.getpid(), signal.SIGINT)
            mended.wait()
        return walk(folder, *arguments)

    monkeypatch.setattr(FolderView, "walk", hang)
    ran = fsck(str(store.path))
    mended.set()
    assert (ran.exit_code, ran.stdout) == (130, "")
    assert ran.stderr == (
        "warning: stopped before the storage answered; run the same command to resume\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_fsck_stopped_by_signal_is_resumed(store: StoreFolder, number: signal.Signals) -> None:
    """At 16 KiB/s a segment takes three seconds, so the signal comes after the first one."""
    flip(store.file(spread(4)[0]), 5000)
    command = [sys.executable, "-c", "from kvtier.cli.main import main; main()", "fsck"]
    process = subprocess.Popen(
        [*command, str(store.path), "--rate", "16KiB/s", "--threads", "1"],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("problem: ")
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "")
    assert "stopped; run the same command again to resume (1 segments" in stdout
    assert (store.path / CURSOR_NAME).exists()
    ran = fsck(str(store.path))
    assert ran.exit_code == 1
    assert ran.stderr.startswith(f"resuming after {store.name(spread(4)[0])}")
    assert "1 problems (4 segments, 12 intact blocks" in ran.stdout
