"""Leases, one call at a time; `test_evictor_together` runs several evictors concurrently."""

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
    """A host whose clock has an offset, but the same rate as all others."""

    def __init__(self, scene: Scene, name: str, offset_s: float = 0.0) -> None:
        self._scene = scene
        self._offset_s = offset_s
        self.leases = Leases(scene.store, self, LEASE_S, owner=name * 16)

    def now_s(self) -> float:
        return self._scene.clock.now_s() + self._offset_s

    def sleep(self, seconds: float) -> None:
        self._scene.clock.advance(seconds)


def test_single_evictor_owns_all_shards() -> None:
    scene = Scene()
    host = Host(scene, "a")
    assert host.leases.balance() == list(ALL)
    assert host.leases.balance() == list(ALL)
    assert host.leases.epoch("rest") == 1
    for shard in ALL:
        host.leases.keep(shard)


@pytest.mark.parametrize("offset_s", [-7 * 3600.0, 0.0, 7 * 3600.0])
def test_two_evictors_share_shards_with_different_clocks(offset_s: float) -> None:
    scene = Scene()
    first, second = Host(scene, "a"), Host(scene, "b", offset_s)
    first.leases.balance()
    assert second.leases.balance() == []
    assert len(first.leases.balance()) == 9
    assert len(second.leases.balance()) == 8
    assert sorted([*first.leases.owned, *second.leases.owned]) == sorted(ALL)
    assert first.leases.fenced == 0, "the leases were released, not lost"


@pytest.mark.parametrize("offset_s", [-7 * 3600.0, 7 * 3600.0])
def test_dead_owner_is_replaced_by_store_clock(offset_s: float) -> None:
    scene = Scene()
    dead, successor = Host(scene, "a"), Host(scene, "b", offset_s)
    dead.leases.balance()
    scene.clock.advance(LEASE_S - 1)
    assert successor.leases.balance() == []
    scene.clock.advance(2)
    assert successor.leases.balance() == list(ALL)
    assert successor.leases.epoch("0") == 2


def test_suspended_owner_stops_before_takeover() -> None:
    scene = Scene()
    suspended, successor = Host(scene, "a"), Host(scene, "b")
    suspended.leases.balance()
    scene.clock.advance(VALID_PART * LEASE_S + 0.1)
    assert suspended.leases.owned == []
    with pytest.raises(Fenced, match="shard 3"):
        suspended.leases.keep("3")
    scene.clock.advance(LEASE_S)
    assert len(successor.leases.balance()) == len(ALL)
    suspended.leases.renew()
    assert suspended.leases.owned == []
    assert suspended.leases.fenced == len(ALL)


def test_resumed_owner_takes_new_epoch() -> None:
    scene = Scene()
    suspended = Host(scene, "a")
    suspended.leases.balance()
    scene.clock.advance(LEASE_S)
    assert suspended.leases.balance() == list(ALL)
    assert suspended.leases.epoch("0") == 2


def test_resumed_owner_releases_expired_leases_beyond_share() -> None:
    """Otherwise the leases beyond its share would stay in the name of a living owner."""
    scene = Scene()
    suspended, other = Host(scene, "a"), Host(scene, "b")
    suspended.leases.balance()
    scene.clock.advance(0.9 * LEASE_S)
    assert other.leases.balance() == []
    assert len(suspended.leases.balance()) == 9
    assert len(other.leases.balance()) == 8


def test_slow_heartbeat_loses_all_leases() -> None:
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


def test_keep_renews_leases() -> None:
    scene = Scene()
    host, other = Host(scene, "a"), Host(scene, "b")
    host.leases.balance()
    for _ in range(100):
        scene.clock.advance(LEASE_S / 5)
        host.leases.keep("0")
        assert other.leases.balance() == [] or len(other.leases.owned) < len(ALL)
    assert host.leases.fenced == 0


def test_failed_heartbeat_is_tolerated_until_lease_expires() -> None:
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


def test_higher_epoch_fences_owner() -> None:
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


def test_released_shards_are_taken_at_once() -> None:
    scene = Scene()
    leaving, successor = Host(scene, "a"), Host(scene, "b")
    leaving.leases.balance()
    leaving.leases.release()
    assert leaving.leases.owned == []
    assert successor.leases.balance() == list(ALL)


def test_old_epochs_are_removed() -> None:
    scene = Scene()
    for number in range(30):
        host = Leases(scene.store, VirtualClock(), LEASE_S, owner=f"{number:016x}")
        host.balance()
        host.release()
    names = [name for name in scene.names("leases") if name.startswith("leases/0.")]
    assert names[-1] == "leases/0.0000000030"
    assert len(names) <= 5


def test_now_is_store_time() -> None:
    scene = Scene()
    assert Host(scene, "a", -1e6).leases.now_s() == scene.clock.now_s()


def test_lease_with_invalid_owner_is_free() -> None:
    scene = Scene()
    for owner in (b"\xff\xfe", b"", b"../../x", b"x" * 1000):
        scene.store.put("leases/0.0000000007", owner)
        host = Leases(scene.store, scene.clock, LEASE_S)
        assert host.balance() == list(ALL)
        assert host.epoch("0") == 8
        host.release()
        scene.store.remove("leases/0.0000000008")
