"""Leases one call at a time; all at once is in test_together."""

import errno

import numpy as np
import pytest

from kvtier.clock import VirtualClock
from kvtier.errors import Fenced
from kvtier.evictor.leases import ALL, VALID_PART, Leases
from kvtier.tiers.shared.store import Stat
from tests.evictor.scenes import Scene

LEASE_S = 60.0


class Host:
    """An evictor's clock shows anything, and goes as fast as everybody's."""

    def __init__(self, scene: Scene, name: str, offset_s: float = 0.0) -> None:
        self._scene = scene
        self._offset_s = offset_s
        self.leases = Leases(scene.store, self, LEASE_S, owner=name * 16)

    def now_s(self) -> float:
        return self._scene.clock.now_s() + self._offset_s

    def sleep(self, seconds: float) -> None:
        self._scene.clock.advance(seconds)


def test_alone_one_has_everything() -> None:
    scene = Scene()
    host = Host(scene, "a")
    assert host.leases.balance() == list(ALL)
    assert host.leases.balance() == list(ALL)
    assert host.leases.epoch("rest") == 1
    for shard in ALL:
        host.leases.keep(shard)


@pytest.mark.parametrize("offset_s", [-7 * 3600.0, 0.0, 7 * 3600.0])
def test_two_share_whatever_their_clocks_show(offset_s: float) -> None:
    scene = Scene()
    first, second = Host(scene, "a"), Host(scene, "b", offset_s)
    first.leases.balance()
    assert second.leases.balance() == []
    assert len(first.leases.balance()) == 9
    assert len(second.leases.balance()) == 8
    assert sorted([*first.leases.owned, *second.leases.owned]) == sorted(ALL)
    assert first.leases.fenced == 0, "given, not lost"


@pytest.mark.parametrize("offset_s", [-7 * 3600.0, 7 * 3600.0])
def test_a_dead_ones_share_is_taken_over_by_the_stores_clock(offset_s: float) -> None:
    scene = Scene()
    dead, heir = Host(scene, "a"), Host(scene, "b", offset_s)
    dead.leases.balance()
    scene.clock.advance(LEASE_S - 1)
    assert heir.leases.balance() == []
    scene.clock.advance(2)
    assert heir.leases.balance() == list(ALL)
    assert heir.leases.epoch("0") == 2


def test_who_slept_too_long_stops_before_anybody_takes_over() -> None:
    scene = Scene()
    sleeper, heir = Host(scene, "a"), Host(scene, "b")
    sleeper.leases.balance()
    scene.clock.advance(VALID_PART * LEASE_S + 0.1)
    assert sleeper.leases.owned == []
    with pytest.raises(Fenced, match="shard 3"):
        sleeper.leases.keep("3")
    scene.clock.advance(LEASE_S)
    assert len(heir.leases.balance()) == len(ALL)
    sleeper.leases.renew()
    assert sleeper.leases.owned == []
    assert sleeper.leases.fenced == len(ALL)


def test_who_awakes_takes_a_new_epoch_or_nothing() -> None:
    scene = Scene()
    sleeper = Host(scene, "a")
    sleeper.leases.balance()
    scene.clock.advance(LEASE_S)
    assert sleeper.leases.balance() == list(ALL)
    assert sleeper.leases.epoch("0") == 2


def test_what_was_lost_asleep_is_given_back() -> None:
    """Beyond its share it stays in its name, and while it lives nobody would take it."""
    scene = Scene()
    sleeper, other = Host(scene, "a"), Host(scene, "b")
    sleeper.leases.balance()
    scene.clock.advance(0.9 * LEASE_S)
    assert other.leases.balance() == []
    assert len(sleeper.leases.balance()) == 9
    assert len(other.leases.balance()) == 8


def test_a_heartbeat_that_took_too_long_keeps_nothing_alive() -> None:
    scene = Scene()
    host = Host(scene, "a")
    host.leases.balance()
    put = scene.store.put

    def slow(name: str, data: bytes) -> object:
        scene.clock.advance(LEASE_S * VALID_PART)
        return put(name, data)

    scene.clock.advance(1)
    scene.store.put = slow  # type: ignore[method-assign,assignment]
    host.leases.renew()
    scene.store.put = put  # type: ignore[method-assign]
    assert host.leases.owned == []


def test_leases_are_kept_by_working() -> None:
    scene = Scene()
    host, other = Host(scene, "a"), Host(scene, "b")
    host.leases.balance()
    for _ in range(100):
        scene.clock.advance(LEASE_S / 5)
        host.leases.keep("0")
        assert other.leases.balance() == [] or len(other.leases.owned) < len(ALL)
    assert host.leases.fenced == 0


def test_a_heartbeat_that_fails_counts_until_the_last_one_is_too_old() -> None:
    scene = Scene()
    host = Host(scene, "a")
    host.leases.balance()

    def full(name: str, data: bytes) -> Stat:
        raise OSError(errno.ENOSPC, "full")

    scene.store.put = full  # type: ignore[method-assign]
    scene.clock.advance(LEASE_S * VALID_PART - 1)
    host.leases.keep("0")
    scene.clock.advance(2)
    with pytest.raises(Fenced):
        host.leases.keep("0")


def test_a_higher_epoch_fences() -> None:
    scene = Scene()
    host = Host(scene, "a")
    host.leases.balance()
    scene.store.publish("leases/5.0000000002", [np.zeros(1, np.uint8)])
    host.leases.renew()
    assert "5" not in host.leases.owned
    with pytest.raises(Fenced):
        host.leases.keep("5")
    with pytest.raises(Fenced):
        host.leases.epoch("5")
    host.leases.keep("6")


def test_who_leaves_is_followed_at_once() -> None:
    scene = Scene()
    leaving, heir = Host(scene, "a"), Host(scene, "b")
    leaving.leases.balance()
    leaving.leases.release()
    assert leaving.leases.owned == []
    assert heir.leases.balance() == list(ALL)


def test_old_epochs_do_not_pile_up_and_the_highest_stays() -> None:
    scene = Scene()
    for number in range(30):
        host = Leases(scene.store, VirtualClock(), LEASE_S, owner=f"{number:016x}")
        host.balance()
        host.release()
    names = [name for name in scene.names("leases") if name.startswith("leases/0.")]
    assert names[-1] == "leases/0.0000000030"
    assert len(names) <= 5


def test_the_time_is_the_stores() -> None:
    scene = Scene()
    assert Host(scene, "a", -1e6).leases.now_s() == scene.clock.now_s()


def test_what_nobody_wrote_is_nobodys() -> None:
    scene = Scene()
    for owner in (b"\xff\xfe", b"", b"../../x", b"x" * 1000):
        scene.store.put("leases/0.0000000007", owner)
        host = Leases(scene.store, scene.clock, LEASE_S)
        assert host.balance() == list(ALL)
        assert host.epoch("0") == 8
        host.release()
        scene.store.remove("leases/0.0000000008")
