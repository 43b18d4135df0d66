"""Journals and their folding, with evictors that die and writes that arrive late."""

import errno

import pytest

from kvtier.errors import Fenced
from kvtier.evictor.journals import (
    KEPT_S,
    fold,
    read_journals,
    read_summaries,
    read_uses,
    summary_name,
)
from kvtier.evictor.layouts import StoreTree, shard_of
from kvtier.evictor.table import Use
from tests.evictor.scenes import FOREIGN, START_S, TREE, Between, Scene, block, key_of

OWN = StoreTree(TREE, is_foreign=False)


def known(scene: Scene, number: int) -> Use | None:
    key = key_of(number)
    journals = read_journals(scene.store, OWN)
    return read_uses(scene.store, OWN, shard_of(key), journals).get(key)


def fold_all(scene: Scene, epoch: int = 1) -> None:
    journals = read_journals(scene.store, OWN)
    fold(scene.store, OWN, journals, epoch, scene.clock.now_s(), lambda: None)


def test_journal_time_is_time_of_its_reads() -> None:
    scene = Scene()
    scene.clock.advance(100)
    scene.read(1, 2)
    assert known(scene, 1) == Use(START_S + 100, 1)
    assert known(scene, 3) is None


def test_fold_keeps_all_uses() -> None:
    scene = Scene()
    for _ in range(3):
        scene.clock.advance(10)
        scene.read(1, 2)
        scene.clock.advance(10)
        scene.read(1)
    before = [known(scene, number) for number in range(4)]
    assert before[:3] == [None, Use(START_S + 60, 6), Use(START_S + 50, 3)]
    fold_all(scene)
    assert not [name for name in scene.names() if name.endswith(".log")]
    assert [known(scene, number) for number in range(4)] == before
    scene.read(2)
    fold_all(scene, epoch=2)
    assert known(scene, 1) == before[1]
    assert known(scene, 2) == Use(START_S + 60, 4)
    per_shard = [name.rpartition(".")[0].rpartition(".")[0] for name in scene.names(TREE)]
    assert len(per_shard) == len(set(per_shard)), "the older summary of a shard is removed"


def test_fold_arriving_late_keeps_uses_of_successor() -> None:
    """A fenced owner's write arrives after that of its successor."""
    scene = Scene()
    scene.read(1)
    late = read_journals(scene.store, OWN)
    scene.clock.advance(50)
    scene.read(1)
    fold_all(scene, epoch=2)
    fold(scene.store, OWN, late, 1, scene.clock.now_s(), lambda: None)
    use = known(scene, 1)
    assert use is not None
    assert use.last_s == START_S + 50


def test_read_uses_takes_latest_use_of_any_epoch() -> None:
    scene = Scene()
    scene.read(1)
    fold_all(scene, epoch=2)
    scene.clock.advance(50)
    scene.read(1)
    fold_all(scene, epoch=1)
    use = known(scene, 1)
    assert use is not None
    assert use.last_s == START_S + 50


@pytest.mark.parametrize("deaths", range(6))
def test_fold_interrupted_anywhere_loses_no_read(deaths: int) -> None:
    scene = Scene()
    scene.read(1)
    scene.read(2)
    fold_all(scene)
    scene.clock.advance(5)
    scene.read(1, 2)
    steps = iter(range(100))

    def keep() -> None:
        if next(steps) == deaths:
            raise Fenced("lost")

    try:
        fold(scene.store, OWN, read_journals(scene.store, OWN), 2, scene.clock.now_s(), keep)
    except Fenced:
        pass
    for number in (1, 2):
        use = known(scene, number)
        assert use is not None
        assert use.last_s == START_S + 5


def test_read_summaries_retries_when_summary_vanishes() -> None:
    scene = Scene()
    scene.read(1)
    fold_all(scene)
    shard = shard_of(key_of(1))

    class Moving(Between):
        moved = False

        def before(self, verb: str, name: str) -> None:
            if verb == "read" and not self.moved:
                self.moved = True
                scene.store.move(name, summary_name(TREE, shard, 2))

    names, uses = read_summaries(Moving(scene.store), OWN, shard)
    assert names == [summary_name(TREE, shard, 2)]
    assert key_of(1) in uses


def test_read_journals_ignores_invalid_names() -> None:
    scene = Scene()
    lines = ["", "blocks/../../etc", "blocks/abc/abd.kvt", block(1), "\0" * 50, "blocks/abc"]
    scene.store.put(f"{TREE}/access/x.log", "\n".join(lines).encode() + b"\xff\xfe\n")
    journals = read_journals(scene.store, OWN)
    assert list(journals.by_name) == [f"{TREE}/access/x.log"]
    assert journals.shards == set()


def test_read_journals_reads_each_journal_once() -> None:
    scene = Scene()
    scene.read(1)
    store = Between(scene.store)
    first = read_journals(store, OWN)
    scene.clock.advance(5)
    scene.read(1)
    second = read_journals(store, OWN, first)
    assert [verb for verb, _ in store.calls].count("read") == 2
    assert second.of(shard_of(key_of(1))) == {key_of(1): Use(START_S + 5, 2)}
    scene.store.remove(min(second.by_name))
    assert len(read_journals(store, OWN, second).by_name) == 1


def test_read_summaries_ignores_damaged_summary() -> None:
    scene = Scene()
    scene.store.put(summary_name(TREE, "0", 1), b"what is this")
    assert read_summaries(scene.store, OWN, "0")[1] == {}


def test_foreign_trees_have_no_journals() -> None:
    scene = Scene()
    tree = StoreTree(FOREIGN, is_foreign=True)
    assert not read_journals(scene.store, tree).by_name
    assert read_summaries(scene.store, tree, "0") == ([], {})


def test_fold_removes_old_reads() -> None:
    scene = Scene()
    scene.read(1)
    scene.clock.advance(KEPT_S + 1)
    fold_all(scene)
    assert known(scene, 1) is None


def test_unreadable_journal_is_skipped_after_grace_period() -> None:
    """The journal matters only while it may report reads in the grace period."""
    scene = Scene()
    scene.read(1)
    scene.clock.advance(100)
    scene.read(2)

    class Refusing(Between):
        def before(self, verb: str, name: str) -> None:
            if verb == "read" and name.endswith("1.log"):
                raise OSError(errno.EIO, "broken disk")

    store = Refusing(scene.store)
    with pytest.raises(OSError, match="broken disk"):
        read_journals(store, OWN, spared_s=START_S - 1)
    journals = read_journals(store, OWN, spared_s=START_S + 1)
    assert journals.shards == {shard_of(key_of(2))}
