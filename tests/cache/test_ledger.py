import pytest

from kvtier.blocks.events import BlockEvent, Change
from kvtier.blocks.key import BlockKey
from tests.cache.ledger import Ledger

A, B = BlockKey(b"a"), BlockKey(b"b")


def stored(tier: str, *keys: BlockKey) -> BlockEvent:
    return BlockEvent(Change.STORED, tier, keys)


def removed(tier: str, *keys: BlockKey) -> BlockEvent:
    return BlockEvent(Change.REMOVED, tier, keys)


def test_ledger_replay_gives_held_blocks() -> None:
    ledger = Ledger()
    ledger.replay([stored("ram", A, B), stored("disk", A)])
    ledger.replay([removed("ram", A)])
    assert (ledger.held("ram"), ledger.held("disk"), ledger.held("peer")) == ({B}, {A}, set())


@pytest.mark.parametrize("change", list(Change))
def test_ledger_rejects_impossible_events(change: Change) -> None:
    ledger = Ledger()
    with pytest.raises(AssertionError):
        ledger.replay([BlockEvent(change, "ram", (A,))] * 2)
    with pytest.raises(AssertionError):
        Ledger().replay([stored("ram", A), removed("disk", A)])
