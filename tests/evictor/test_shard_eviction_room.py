"""Making room in a full store, without a lease and without the store's time."""

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


def test_make_room_evicts_few_coldest_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert left[:100] == list(range(100)), "read in the grace period"
    assert left[-200:] == list(range(200, 400)), "written in the grace period"


def test_make_room_keeps_blocks_in_use() -> None:
    scene = Scene()
    scene.write(*range(50))
    assert room(scene) == shard_eviction.ROOM
    assert len(scene.blocks()) == 50
