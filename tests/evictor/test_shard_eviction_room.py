"""Room in a full store, without a lease and without the time."""

import pytest

from kvtier.evictor import shard_eviction
from kvtier.evictor.budget import Amount
from kvtier.evictor.events import NoAnnouncer
from kvtier.evictor.layouts import StoreTree
from kvtier.evictor.options import EvictorOptions
from kvtier.evictor.report import PassReport, SilentObserver
from kvtier.evictor.shard_eviction import make_room
from tests.evictor.scenes import TREE, Scene

OWN = StoreTree(TREE, is_foreign=False)


def room(scene: Scene, report: PassReport | None = None) -> Amount:
    return make_room(
        scene.store,
        [OWN],
        EvictorOptions(),
        scene.clock,
        SilentObserver(),
        report or PassReport(),
        NoAnnouncer(),
    )


def test_a_little_of_the_cold_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_eviction, "ROOM", Amount(5000, 5))
    scene = Scene()
    scene.write(*range(200))
    scene.clock.advance(100)
    scene.write(*range(200, 400))
    scene.read(*range(100))
    report = PassReport()
    assert room(scene, report) == Amount()
    assert (report.freed["bound"].files, report.freed_bytes) == (5, 5000)
    left = scene.blocks()
    assert len(left) == 395
    assert left[:100] == list(range(100)), "read a moment ago"
    assert left[-200:] == list(range(200, 400)), "written a moment ago"


def test_where_all_is_in_use_nothing_goes() -> None:
    scene = Scene()
    scene.write(*range(50))
    assert room(scene) == shard_eviction.ROOM
    assert len(scene.blocks()) == 50
