import msgspec

from kvtier.blocks.events import BlockEvent, Change
from kvtier.blocks.key import BlockKey


def test_block_event_survives_encoding() -> None:
    event = BlockEvent(Change.REMOVED, "disk", (BlockKey(b"\x00\xff"), BlockKey(b"")))
    raw = msgspec.msgpack.encode(event)
    assert msgspec.msgpack.decode(raw, type=BlockEvent) == event


def test_block_events_are_comparable_and_hashable() -> None:
    stored = BlockEvent(Change.STORED, "ram", (BlockKey(b"a"),))
    assert {stored, BlockEvent(Change.STORED, "ram", (BlockKey(b"a"),))} == {stored}
    assert stored != BlockEvent(Change.STORED, "disk", (BlockKey(b"a"),))
