import errno
from itertools import pairwise
from pathlib import Path

import pytest

from kvtier.errors import Fenced
from kvtier.evictor.context import PassContext
from kvtier.evictor.options import EvictorOptions
from kvtier.evictor.report import SilentObserver
from kvtier.tiers.shared.posix import PosixStore
from tests.evictor.scenes import Between, Scene


class Refusing(Between):
    def before(self, verb: str, name: str) -> None:
        if verb == "remove":
            raise OSError(errno.EACCES, "no")


def test_remove_counts_file_by_reason() -> None:
    scene = Scene()
    scene.store.put("file", b"12345")
    context = scene.context()
    assert context.remove("0", "file", 5, "ttl")
    assert not context.remove("0", "file", 5, "ttl"), "it was removed before"
    assert (context.report.freed["ttl"].files, context.report.freed["ttl"].size_bytes) == (1, 5)


def test_remove_in_dry_run_only_counts() -> None:
    scene = Scene()
    scene.store.put("file", b"12345")
    context = scene.context(dry_run=True)
    assert context.remove("0", "file", 5, "ttl")
    assert context.report.freed_bytes == 5
    assert scene.names() == ["file"]


def test_remove_counts_refused_calls_and_limits_log(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    context = scene.context(Refusing(scene.store))
    for _ in range(30):
        assert not context.remove("0", "file", 5, "ttl")
    assert context.report.refused_calls == 30
    assert context.report.freed_files == 0
    assert len(caplog.messages) == 10


def test_remove_without_lease_raises_fenced() -> None:
    scene = Scene()
    scene.store.put("file", b"12345")

    def keep(shard: str) -> None:
        raise Fenced(shard)

    context = PassContext(scene.store, EvictorOptions(), scene.clock, keep, 0.0, SilentObserver())
    with pytest.raises(Fenced):
        context.remove("0", "file", 5, "ttl")
    with pytest.raises(Fenced):
        context.before_file("0")
    assert scene.names() == ["file"]


def test_rates_are_kept_while_lease_is_renewed() -> None:
    scene = Scene()
    began_s = scene.clock.now_s()
    asked_s: list[float] = []
    options = EvictorOptions(files_per_second=0.2, deletes_per_second=0.1)
    context = PassContext(
        scene.store,
        options,
        scene.clock,
        lambda _: asked_s.append(scene.clock.now_s()),
        0.0,
        SilentObserver(),
    )
    for _ in range(5):
        context.before_file("0")
    scanned_s = scene.clock.now_s() - began_s
    assert 19 <= scanned_s <= 21
    for _ in range(5):
        context.remove("0", "file", 5, "ttl")
    assert 39 <= scene.clock.now_s() - began_s - scanned_s <= 41
    assert max(b - a for a, b in pairwise(asked_s)) <= 1.0


def test_remove_takes_temporary_but_not_invalid_names(tmp_path: Path) -> None:
    store = PosixStore(tmp_path)
    for name in (".tmp-host-1", "with space"):
        (tmp_path / name).touch()
    context = Scene().context(store)
    assert context.remove("0", ".tmp-host-1", 0, "orphan")
    assert not context.remove("0", "with space", 0, "unknown")
    assert [path.name for path in tmp_path.iterdir()] == ["with space"]
    store.close()


def test_remove_checks_lease_after_waiting() -> None:
    """The wait of half a second exceeds the rest of the lease."""
    scene = Scene()
    for number in range(2):
        scene.store.put(f"file-{number}", b"12345")
    began_s = scene.clock.now_s()

    def keep(shard: str) -> None:
        if scene.clock.now_s() - began_s > 0.3:
            raise Fenced(shard)

    options = EvictorOptions(deletes_per_second=2.0)
    context = PassContext(scene.store, options, scene.clock, keep, 0.0, SilentObserver())
    assert context.remove("0", "file-0", 5, "ttl")
    with pytest.raises(Fenced):
        context.remove("0", "file-1", 5, "ttl")
    assert scene.names() == ["file-1"]
