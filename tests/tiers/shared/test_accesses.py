"""The access journal: what readers tell the evictor."""

from collections.abc import Callable

import pytest

from kvtier.blocks.key import BlockKey
from kvtier.clock import VirtualClock
from kvtier.tiers.shared.accesses import FLUSH_S
from kvtier.tiers.shared.tier import FolderTier
from tests.tiers.shared.segments import Tiers, keys, read, write


def find(tier: FolderTier, blocks: list[BlockKey]) -> None:
    tier.find(blocks)


def test_access_journal_lists_segments_read_at_close(tiers: Tiers) -> None:
    tier, other = tiers.open(), tiers.open()
    write(tier, keys(8))
    read(other, keys(5))
    other.close()
    (log,) = tiers.folder.glob("*/access/*.log")
    root = log.parents[1]
    assert {root / line for line in log.read_text().splitlines()} == set(tiers.segments())
    tier.close()
    assert len(list(tiers.folder.glob("*/access/*.log"))) == 1, (
        "a tier that read nothing writes no journal"
    )


@pytest.mark.parametrize("call", [find, write], ids=["find", "write"])
def test_access_journal_is_flushed_by_any_later_call(
    call: Callable[[FolderTier, list[BlockKey]], object], tiers: Tiers
) -> None:
    clock = VirtualClock()
    tier = tiers.open(clock=clock)
    write(tier, keys(8))
    read(tier, keys(5))
    clock.advance(FLUSH_S)
    assert not list(tiers.folder.glob("*/access/*.log"))
    call(tier, keys(1))
    assert list(tiers.folder.glob("*/access/*.log"))
