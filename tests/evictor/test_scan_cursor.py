from kvtier.evictor.scan import (
    CURSOR_LIVES_S,
    ScanCursor,
    put_cursor,
    read_cursor,
    remove_cursor,
)
from kvtier.evictor.table import Table
from tests.evictor.scenes import Scene


def test_cursor_round_trips_and_expires() -> None:
    scene = Scene()
    table = Table()
    table.add(b"key", 5, 1.0, 2.0)
    put_cursor(scene.store, "a", ScanCursor("t", "t/x", {"t": table.columns()}, {"t": (9, 1)}))
    found = read_cursor(scene.store, "a", scene.clock.now_s())
    assert found is not None
    assert (found.tree, found.after, found.other) == ("t", "t/x", {"t": (9, 1)})
    assert found.tables["t"].columns() == table.columns()
    assert read_cursor(scene.store, "b", scene.clock.now_s()) is None
    assert read_cursor(scene.store, "a", scene.clock.now_s() + CURSOR_LIVES_S + 1) is None
    remove_cursor(scene.store, "a")
    assert read_cursor(scene.store, "a", scene.clock.now_s()) is None


def test_cursor_that_is_damaged_is_ignored() -> None:
    scene = Scene()
    for raw in (b"", b"\xc1", b"\x94\xa1t\xa1t\x81\xa1t\x95\xc4\x00\x91\x05\x90\x90\x90\x80"):
        scene.store.put("leases/cursor-a.bin", raw)
        assert read_cursor(scene.store, "a", scene.clock.now_s()) is None
