from kvtier.evictor.leases import ALL, DryRunLeases
from tests.evictor.scenes import Scene


def test_dry_run_leases_own_all_shards_and_write_nothing() -> None:
    scene = Scene()
    leases = DryRunLeases(scene.store)
    assert leases.balance() == leases.owned == list(ALL)
    assert leases.now_s() == scene.clock.now_s()
    leases.keep("0")
    leases.renew()
    leases.release()
    assert leases.epoch("rest") == 0
    assert leases.fenced == 0
    assert scene.names() == []
