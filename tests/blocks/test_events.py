import msgspec

from kvtier.blocks.events import BlockEvent, Change
from kvtier.blocks.key import BlockKey


def test_events_survive_the_wire() -> None:
    event = BlockEvent(Change.REMOVED, "disk", (BlockKey(b"\x00\xff"), BlockKey(b"")))
    raw = msgspec.msgpack.encode(event)
    assert msgspec.msgpack.decode(raw, type=BlockEvent) == event


def test_events_can_be_compared_and_kept_in_sets() -> None:
    stored = BlockEvent(Change.STORED, "ram", (BlockKey(b"a"),))
    assert {stored, BlockEvent(Change.STORED, "ram", (BlockKey(b"a"),))} == {stored}
    assert stored != BlockEvent(Change.STORED, "disk", (BlockKey(b"a"),))
