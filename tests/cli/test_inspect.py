import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvtier.cli.main import kvtier
from kvtier.inspection import workers
from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.view import Entry
from kvtier.inspection.workers import Throttle
from tests.inspection.stores import NAME, StoreFolder, key_file, keys


@pytest.fixture
def store(tmp_path: Path) -> StoreFolder:
    (tmp_path / "kv").mkdir()
    return StoreFolder(tmp_path / "kv")


def test_inspect_shows_store(store: StoreFolder) -> None:
    store.fill(keys(10), reads=1)
    ran = CliRunner().invoke(kvtier, ["inspect", str(store.path)])
    assert ran.exit_code == 0
    assert NAME in ran.stdout
    assert "hash_seed" not in ran.stdout
    ran = CliRunner().invoke(kvtier, ["inspect", str(store.path), "--verbose", "--top", "0"])
    assert "hash_seed" in ran.stdout
    assert "hottest" not in ran.stdout


def test_inspect_json_is_only_output(store: StoreFolder) -> None:
    store.fill(keys(10), reads=1)
    ran = CliRunner().invoke(kvtier, ["inspect", str(store.path), "--json", "--space", NAME])
    assert ran.exit_code == 0
    survey = json.loads(ran.stdout)
    assert survey["path"] == str(store.path)
    assert [space["blocks"] for space in survey["spaces"]] == [10]
    assert abs(survey["now_s"] - survey["spaces"][0]["segments"]["newest_s"]) < 600


def test_inspect_with_key_file_shows_hottest_prefixes(store: StoreFolder, tmp_path: Path) -> None:
    secret = key_file(tmp_path)
    store.fill(keys(4), key_file=secret, reads=1)
    ran = CliRunner().invoke(kvtier, ["inspect", str(store.path)])
    assert "give the secret's file with --key-file" in ran.stdout
    ran = CliRunner().invoke(kvtier, ["inspect", str(store.path), "--key-file", str(secret)])
    assert "hottest prefixes" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([""], "PATH: empty; name a folder or a bucket"),
        (["none"], "PATH: none does not exist; name the folder that engines share"),
        (["file"], "PATH: file is not a folder; name the folder"),
        (["kv", "--space", "x"], "no key space x in"),
        (["kv", "--key-file", "none"], "--key-file: none cannot be read"),
    ],
)
def test_inspect_refuses_bad_input_in_one_line(
    store: StoreFolder, arguments: list[str], error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.path.parent)
    Path("file").touch()
    ran = CliRunner().invoke(kvtier, ["inspect", *arguments])
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr.startswith("error: ")
    assert error in ran.stderr
    assert ran.stderr.count("\n") == 1


@pytest.mark.parametrize("hangs", [True, False])
def test_inspect_is_interrupted_while_mount_hangs(
    store: StoreFolder, hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_NAPS", 2)
    store.fill(keys(4))
    mended, heard, sent = threading.Event(), threading.Event(), threading.Event()
    walk, stop = FolderView.walk, Throttle.stop

    def hear(throttle: Throttle) -> None:
        stop(throttle)
        heard.set()

    def slow(folder: FolderView, *arguments) -> Iterator[Entry]:
        if not sent.is_set():  # it calls itself for each folder
            sent.set()
            os.kill(os.getpid(), signal.SIGINT)
            (mended if hangs else heard).wait()
        return walk(folder, *arguments)

    monkeypatch.setattr(FolderView, "walk", slow)
    monkeypatch.setattr(Throttle, "stop", hear)
    before = signal.getsignal(signal.SIGINT)
    ran = CliRunner().invoke(kvtier, ["inspect", str(store.path)])
    mended.set()
    assert (ran.exit_code, ran.stdout) == (130, "")
    assert signal.getsignal(signal.SIGINT) is before


def test_inspect_refuses_newer_format(store: StoreFolder) -> None:
    store.fill(keys(4))
    manifest = store.path / NAME / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    ran = CliRunner().invoke(kvtier, ["inspect", str(store.path)])
    assert ran.exit_code == 2
    assert "of a newer kvtier" in ran.stderr
