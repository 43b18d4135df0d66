"""Readers tell whoever cleans what they read."""

from collections.abc import Callable

import pytest

from kvtier.blocks.key import BlockKey
from kvtier.clock import VirtualClock
from kvtier.tiers.shared.accesses import FLUSH_S
from kvtier.tiers.shared.tier import FolderTier
from tests.tiers.shared.segments import Tiers, keys, read, write


def find(tier: FolderTier, blocks: list[BlockKey]) -> None:
    tier.find(blocks)


def test_who_cleans_hears_what_was_read(tiers: Tiers) -> None:
    tier, other = tiers.open(), tiers.open()
    write(tier, keys(8))
    read(other, keys(5))
    other.close()
    (log,) = tiers.folder.glob("*/access/*.log")
    root = log.parents[1]
    assert {root / line for line in log.read_text().splitlines()} == set(tiers.segments())
    tier.close()
    assert len(list(tiers.folder.glob("*/access/*.log"))) == 1, "who read nothing tells nothing"


@pytest.mark.parametrize("call", [find, write], ids=["a look", "a write"])
def test_what_was_read_last_is_told_by_the_next_call_of_any_kind(
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
