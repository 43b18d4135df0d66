"""A store in a folder: the contract three ways, refusals, hangs, kills and races."""

import errno
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvtier.errors import InvalidSettings
from kvtier.testing.samples import blank, content, joined
from kvtier.testing.stores import StoreContract
from kvtier.tiers.shared.posix import PosixStore
from kvtier.tiers.shared.store import TEMPORARY
from tests.tiers.shared.broken import BrokenFiles, NetworkFiles

CODES = [errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EACCES]
PAGES = content(1, 4 * 4096)


class TestPosixStore(StoreContract):
    """The contract on this file system."""

    def make_store(self, folder: Path) -> PosixStore:
        return PosixStore(folder)


class TestPosixStoreOnANetwork(StoreContract):
    """The contract with hard links instead of exclusive renames, page cache and fsync."""

    def make_store(self, folder: Path) -> PosixStore:
        return PosixStore(folder, direct="never", durability="fsync", files=NetworkFiles())


def broken(path: Path, **settings: Any) -> tuple[PosixStore, BrokenFiles]:
    files = BrokenFiles()
    store = PosixStore(path, files=files, **settings)
    files.calls.clear()
    files.order.clear()
    return store, files


def everything(path: Path) -> list[str]:
    """Return every file below a folder, including temporary ones."""
    return sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir())


WRITING = ["open", "pwritev", "sync", "close"]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("call", [*WRITING, "make_folder", "rename_exclusive"])
def test_failed_publish_leaves_nothing(tmp_path: Path, call: str, code: int) -> None:
    store, files = broken(tmp_path, durability="fsync")
    files.errors[call] = code
    with pytest.raises(OSError, match=os.strerror(code)) as refused:
        store.publish("a/b/file", [PAGES])
    assert refused.value.errno == code
    files.errors.clear()
    assert everything(tmp_path) == []
    assert store.publish("a/b/file", [PAGES])
    store.close()


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("call", [*WRITING, "stat", "rename"])
def test_failed_put_keeps_the_old_file(tmp_path: Path, call: str, code: int) -> None:
    store, files = broken(tmp_path, durability="fsync")
    store.put("a/file", b"old")
    files.errors[call] = code
    with pytest.raises(OSError, match=os.strerror(code)):
        store.put("a/file", b"new")
    files.errors.clear()
    assert everything(tmp_path) == ["a/file"]
    assert (tmp_path / "a" / "file").read_bytes() == b"old"
    store.close()


@pytest.mark.parametrize("code", CODES)
def test_failed_link_leaves_nothing(tmp_path: Path, code: int) -> None:
    files = NetworkFiles()
    store = PosixStore(tmp_path, files=files)
    files.errors["link"] = code
    with pytest.raises(OSError, match=os.strerror(code)):
        store.publish("file", [PAGES])
    assert everything(tmp_path) == []
    store.close()


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize(
    ("call", "verb"),
    [
        ("open", lambda store: store.read("file", 0, [blank(10)])),
        ("stat_open", lambda store: store.read("file", 0, [blank(10)])),
        ("preadv", lambda store: store.read("file", 0, [blank(10)])),
        ("stat", lambda store: store.stat("file")),
        ("unlink", lambda store: store.remove("file")),
        ("rename", lambda store: store.move("file", "to")),
        ("stat", lambda store: store.move("file", "to")),
        ("make_folder", lambda store: store.move("file", "new/to")),
        ("entries", lambda store: store.list("")),
        ("stat", lambda store: store.list("")),
        ("remove_folder", lambda store: store.remove_folder("folder")),
    ],
)
def test_refused_call_raises_its_errno(
    tmp_path: Path, call: str, verb: Callable[[PosixStore], object], code: int
) -> None:
    store, files = broken(tmp_path)
    store.publish("file", [PAGES])
    files.errors[call] = code
    with pytest.raises(OSError, match=os.strerror(code)):
        verb(store)
    files.errors.clear()
    assert everything(tmp_path) == ["file"]
    assert store.list("").entries
    store.close()


@pytest.mark.parametrize(
    ("durability", "calls"),
    [
        ("none", ["rename_exclusive", "unlink"]),
        ("fdatasync", ["rename_exclusive", "unlink"]),
        ("fsync", ["rename_exclusive", "unlink", "open", "sync", "close"]),
    ],
)
def test_publish_of_taken_name_makes_it_durable_first(
    tmp_path: Path, durability: str, calls: list[str]
) -> None:
    """The winner may not have done so yet, and a power cut would remove the name."""
    PosixStore(tmp_path).publish("a/file", [PAGES])
    store, files = broken(tmp_path, durability=durability)
    assert not store.publish("a/file", [PAGES])
    assert files.order[files.order.index("rename_exclusive") :] == calls
    store.close()


def test_publish_raises_when_name_cannot_be_made_durable(tmp_path: Path) -> None:
    store, files = broken(tmp_path, durability="fsync")
    seen: list[str] = []

    def fail_second(fd: int) -> None:
        seen.append("sync")
        if len(seen) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    files.sync = fail_second  # type: ignore[method-assign]
    with pytest.raises(OSError, match="Input/output"):
        store.publish("file", [PAGES])
    assert everything(tmp_path) == ["file"]
    store.close()


def test_read_of_stale_file_is_none(tmp_path: Path) -> None:
    store, files = broken(tmp_path)
    store.publish("file", [PAGES])
    files.errors["preadv"] = errno.ESTALE
    assert store.read("file", 0, [blank(10)]) is None
    store.close()


@pytest.mark.parametrize(
    ("durability", "calls"),
    [
        ("none", ["open", "pwritev", "close", "rename_exclusive"]),
        ("fdatasync", ["open", "pwritev", "sync_data", "close", "rename_exclusive"]),
        (
            "fsync",
            ["open", "pwritev", "sync", "close", "rename_exclusive", "open", "sync", "close"],
        ),
    ],
)
def test_durability_setting_decides_the_syncs(
    tmp_path: Path, durability: str, calls: list[str]
) -> None:
    store, files = broken(tmp_path, durability=durability)
    (tmp_path / "folder").mkdir()
    store.publish("folder/file", [PAGES])
    assert files.order == calls
    files.order.clear()
    store.put("folder/file", b"x")
    put = ["stat" if call == "rename_exclusive" else call for call in calls]
    put.insert(put.index("stat") + 1, "rename")
    assert files.order == put
    files.order.clear()
    store.publish("new/folder/file", [PAGES])
    made = files.order.count("make_folder")
    assert made == 2
    extra = made if durability == "fsync" else 0
    assert files.calls["sync"] == 2 * calls.count("sync") + calls.count("sync") + extra
    store.close()


@pytest.mark.parametrize("make_files", [BrokenFiles, NetworkFiles])
def test_publish_leaves_one_link_and_no_temporary(
    tmp_path: Path, make_files: type[BrokenFiles]
) -> None:
    store = PosixStore(tmp_path, files=make_files())
    assert store.publish("file", [PAGES])
    assert (tmp_path / "file").stat().st_nlink == 1
    assert not store.publish("file", [content(2, 10)])
    store.put("file", b"x")
    assert everything(tmp_path) == ["file"]
    store.close()


def test_whole_pages_bypass_the_page_cache(tmp_path: Path) -> None:
    files = BrokenFiles()
    try:
        store = PosixStore(tmp_path, direct="always", files=files)
    except InvalidSettings:
        pytest.skip("this file system has no O_DIRECT")
    files.flags.clear()
    store.publish("pages", [PAGES, PAGES])
    store.read("pages", 4096, [blank(4096)])
    assert [bool(flags & os.O_DIRECT) for flags in files.flags] == [True, True]
    files.flags.clear()
    store.publish("odd", [PAGES, PAGES[:1]])
    store.put("small", b"x")
    store.read("pages", 1, [blank(4096)])
    store.read("pages", 0, [blank(100)])
    assert not any(flags & os.O_DIRECT for flags in files.flags)
    assert len(files.flags) == 4
    store.close()
    files.flags.clear()
    store = PosixStore(tmp_path, direct="never", files=files)
    store.publish("more", [PAGES])
    assert not any(flags & os.O_DIRECT for flags in files.flags)
    store.close()


def test_files_and_folders_are_private(tmp_path: Path) -> None:
    store = PosixStore(tmp_path / "store")
    store.publish("a/b/file", [PAGES])
    store.put("a/small", b"x")
    modes = {
        path.relative_to(tmp_path).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in tmp_path.rglob("*")
    }
    assert modes == {
        "store": 0o700,
        "store/a": 0o700,
        "store/a/b": 0o700,
        "store/a/b/file": 0o600,
        "store/a/small": 0o600,
    }
    store.close()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to("other")


@pytest.mark.parametrize("direct", ["auto", "never"])
@pytest.mark.parametrize("make", [fifo, link, Path.mkdir])
def test_irregular_file_of_the_name_is_an_error(
    tmp_path: Path, make: Callable[[Path], None], direct: Any
) -> None:
    """It never hangs, is never read and is not listed."""
    store = PosixStore(tmp_path, direct=direct)
    store.put("other", b"x")
    make(tmp_path / "file")
    for size in (4096, 10):
        with pytest.raises(OSError, match="not a regular file") as refused:
            store.read("file", 0, [blank(size)])
        assert refused.value.errno == errno.EINVAL
    for verb in (lambda: store.stat("file"), lambda: store.move("file", "to")):
        with pytest.raises(OSError, match="not a regular file"):
            verb()
    assert not store.publish("file", [PAGES])
    assert [entry.name for entry in store.list("").entries] == ["other"]
    if make is Path.mkdir:
        with pytest.raises(OSError, match=r"directory|permitted"):
            store.remove("file")
    else:
        assert store.remove("file")
        assert store.publish("file", [PAGES])
    assert (tmp_path / "other").read_bytes() == b"x"
    store.close()


def test_write_below_a_file_raises_not_a_directory(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    store.put("a", b"x")
    for verb in (lambda: store.publish("a/file", [PAGES]), lambda: store.put("a/b/c", b"x")):
        with pytest.raises(NotADirectoryError):
            verb()
    assert everything(tmp_path) == ["a"]
    store.close()


def test_store_whose_folder_was_removed_misses_and_fails(tmp_path: Path) -> None:
    """No file is written into a new folder of the same name."""
    store = PosixStore(tmp_path / "store")
    store.publish("a/file", [PAGES])
    (tmp_path / "store" / "a" / "file").unlink()
    (tmp_path / "store" / "a").rmdir()
    (tmp_path / "store").rmdir()
    (tmp_path / "store").mkdir()
    assert store.read("a/file", 0, [blank(10)]) is None
    assert store.stat("a/file") is None
    assert not store.remove("a/file")
    assert not store.move("a/file", "b/file")
    assert store.list("").entries == []
    for name in ("file", "a/file"):
        with pytest.raises(FileNotFoundError):
            store.publish(name, [PAGES])
        with pytest.raises(FileNotFoundError):
            store.put(name, b"x")
    assert list((tmp_path / "store").iterdir()) == []
    store.close()


def test_list_page_continues_the_last_walk(tmp_path: Path) -> None:
    store, files = broken(tmp_path)
    for number in range(40):
        (tmp_path / f"{number:02d}").touch()
    page = store.list("", "", 10)
    while page.after is not None:
        page = store.list("", page.after, 10)
    assert files.calls["entries"] == 1
    assert files.calls["stat"] == 40
    with pytest.raises(ValueError, match="at least one entry"):
        store.list("", "", 0)
    store.close()


def test_sweep_methods_list_and_remove_temporaries_and_folders(tmp_path: Path) -> None:
    store, files = broken(tmp_path)
    store.publish("a/b/file", [PAGES])
    dead = [f"{TEMPORARY}host-1-0-x", f"a/{TEMPORARY}host-1-1-x", f"a/b/{TEMPORARY}host-1-2-x"]
    for name in dead:
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "a" / ".hidden").touch()
    assert sorted(entry.name for entry in store.temporaries()) == sorted(dead)
    assert [entry.name for entry in store.temporaries("a/b")] == dead[2:]
    assert next(store.temporaries()).stat.size == 4
    assert [entry.name for entry in store.list("").entries] == ["a/b/file"]
    with pytest.raises(ValueError, match="not the name of a temporary"):
        store.remove_temporary("a/b/file")
    assert all(store.remove_temporary(name) for name in dead)
    assert not store.remove_temporary(dead[0])
    assert list(store.folders()) == ["a/b", "a"]
    assert not store.remove_folder("a/b")
    assert not store.remove_folder("no/folder")
    assert not store.remove_folder("a/b/file")
    store.remove("a/b/file")
    assert store.remove_folder("a/b")
    assert list(store.folders("a")) == []
    with pytest.raises(ValueError, match="is not a legal file name"):
        store.remove_folder("")
    files.errors["unlink"] = errno.EACCES
    with pytest.raises(PermissionError):
        store.remove_temporary(dead[0])
    store.close()


def test_publish_fails_when_a_sweep_removed_its_temporary(tmp_path: Path) -> None:
    store, files = broken(tmp_path)
    files.hung.add("rename_exclusive")
    with ThreadPoolExecutor(1) as thread:
        publishing = thread.submit(store.publish, "file", [PAGES])
        assert files.hangs.wait(60)
        assert [store.remove_temporary(entry.name) for entry in store.temporaries()] == [True]
        files.release.set()
        with pytest.raises(FileNotFoundError):
            publishing.result()
    assert everything(tmp_path) == []
    store.close()


def test_close_lets_running_calls_finish(tmp_path: Path) -> None:
    """A running call finishes in the folder that it began with; later calls raise EBADF."""
    store, files = broken(tmp_path / "store")
    files.hung.add("pwritev")
    with ThreadPoolExecutor(1) as thread:
        publishing = thread.submit(store.publish, "a/file", [PAGES])
        assert files.hangs.wait(60)
        store.close()
        (tmp_path / "other").mkdir()
        others = [os.open(tmp_path / "other", os.O_RDONLY) for _ in range(8)]
        files.release.set()
        assert publishing.result()
    for fd in others:
        os.close(fd)
    assert everything(tmp_path) == ["store/a/file"]
    for verb in (
        lambda: store.publish("b", [PAGES]),
        lambda: store.read("a/file", 0, [blank(10)]),
        lambda: store.list(""),
    ):
        with pytest.raises(OSError, match="closed") as refused:
            verb()
        assert refused.value.errno == errno.EBADF


def test_writes_survive_a_sweep_that_removes_folders(tmp_path: Path) -> None:
    """Publish, put and move into folders that vanish while they are empty."""
    store = PosixStore(tmp_path)
    done = threading.Event()

    def sweep() -> int:
        removed = 0
        while not done.wait(
            0.0002
        ):  # faster than any sweep, but the other thread still gets its turn
            removed += sum(store.remove_folder(folder) for folder in store.folders())
        return removed

    with ThreadPoolExecutor(1) as thread:
        sweeping = thread.submit(sweep)
        try:
            for _ in range(120):
                assert store.publish("a/b/file", [PAGES[:4096]])
                assert store.move("a/b/file", "c/d/file")
                store.put("a/small", b"x")
                assert store.remove("c/d/file")
                assert store.remove("a/small")
        finally:
            done.set()
        assert sweeping.result() > 0
    store.close()


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a fork of this process and return its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    finally:
        os._exit(3)  # no code of the test runner may run in the child


def test_publish_by_several_processes_succeeds_once(tmp_path: Path) -> None:
    rounds, writers = 60, 3

    def race(writer: int) -> None:
        store = PosixStore(tmp_path)
        mine = np.full(4096, writer, np.uint8)
        won = bytes(store.publish(f"{number % 4}/{number}", [mine]) for number in range(rounds))
        os.write(pipe[1], bytes([writer]) + won)

    pipe = os.pipe()
    children = [in_child(lambda writer=writer: race(writer)) for writer in range(writers)]  # type: ignore[misc]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * writers
    told = os.read(pipe[0], 10_000)
    won = {told[at]: told[at + 1 : at + 1 + rounds] for at in range(0, len(told), rounds + 1)}
    for fd in pipe:
        os.close(fd)
    for number in range(rounds):
        winners = [writer for writer in range(writers) if won[writer][number]]
        assert len(winners) == 1
        assert (tmp_path / f"{number % 4}" / f"{number}").read_bytes() == bytes(winners) * 4096
    assert len(everything(tmp_path)) == rounds


@pytest.fixture(params=["rename", "link"])
def make_killable_store(request: pytest.FixtureRequest) -> Callable[[Path], PosixStore]:
    return lambda path: PosixStore(path, files=NetworkFiles() if request.param == "link" else None)


def test_kill_during_publish_leaves_whole_files_and_temporaries(
    tmp_path: Path, make_killable_store: Callable[[Path], PosixStore]
) -> None:
    """Every named file is whole; everything else is a temporary file that a sweep removes."""
    parts = [content(number, 16 * 4096) for number in range(4)]

    def publish_forever(generation: int) -> None:
        store = make_killable_store(tmp_path)
        number = 0
        while True:
            store.publish(f"{number % 7}/{generation}-{number}", parts)
            number += 1
            store.remove(f"{(number - 7) % 7}/{generation}-{number - 7}")

    whole = orphans = 0
    for generation in range(12):
        child = in_child(lambda generation=generation: publish_forever(generation))  # type: ignore[misc]
        while not list(tmp_path.glob(f"*/{generation}-*")):
            time.sleep(0.001)
        time.sleep(0.001 * generation)
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
    store = PosixStore(tmp_path)
    for entry in store.list("").entries:
        assert entry.stat.size == 4 * 16 * 4096
        assert (tmp_path / entry.name).read_bytes() == joined(parts)
        whole += 1
    for entry in store.temporaries():
        assert store.remove_temporary(entry.name)
        orphans += 1
    assert whole >= 12
    assert orphans > 0, "no kill happened during a publish"
    assert len(everything(tmp_path)) == whole
    store.close()
