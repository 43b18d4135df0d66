from kvtier.index.fleet.expected import ExpectedBlocks
from kvtier.index.fleet.table import ROUTED, BlockTable

CHAIN = list(range(100, 120))


def reach(table: BlockTable, slot: int) -> int:
    return table.ends(CHAIN).reach(slot, ROUTED)


def test_expected_blocks_count_until_they_expire() -> None:
    table = BlockTable(16)
    slot, expected = table.take_slot(), ExpectedBlocks(table, ttl_s=2.0)
    expected.add(slot, CHAIN[:5], 10.0)
    expected.expire(11.9)
    assert reach(table, slot) == 5
    expected.expire(12.0)
    assert (reach(table, slot), len(table)) == (0, 0)


def test_block_touched_by_later_request_stays() -> None:
    table = BlockTable(16)
    slot, expected = table.take_slot(), ExpectedBlocks(table, ttl_s=2.0)
    expected.add(slot, CHAIN[:5], 10.0)
    expected.add(slot, CHAIN[:3], 11.0)
    expected.expire(12.5)
    assert reach(table, slot) == 3
    expected.add(slot, CHAIN, 13.0)
    assert reach(table, slot) == 20
    expected.expire(15.0)
    assert len(table) == 0
    assert expected._touched == {slot: {}}


def test_removed_blocks_are_removed_for_every_request() -> None:
    table = BlockTable(16)
    slot, expected = table.take_slot(), ExpectedBlocks(table, ttl_s=2.0)
    expected.add(slot, CHAIN[:5], 10.0)
    expected.add(slot, CHAIN[:5], 11.0)
    expected.remove(slot, [*CHAIN[3:8], 999])
    assert reach(table, slot) == 3
    expected.remove(slot + 1, CHAIN)
    expected.expire(12.5)
    assert reach(table, slot) == 3
    expected.expire(13.0)
    assert len(table) == 0


def test_oldest_requests_expire_beyond_limit() -> None:
    table = BlockTable(16)
    slot, expected = table.take_slot(), ExpectedBlocks(table, blocks_max=10)
    expected.add(slot, CHAIN[:6], 0.0)
    expected.add(slot, [1, 2, 3, 4], 0.0)
    assert reach(table, slot) == 6
    expected.add(slot, [5], 0.0)
    assert (reach(table, slot), len(table)) == (0, 5)
    expected.add(slot, CHAIN, 0.0)
    assert (reach(table, slot), len(table)) == (20, 20), "one is always expected"


def test_remove_slot_leaves_other_slots() -> None:
    table = BlockTable(16)
    one, other = table.take_slot(), table.take_slot()
    expected = ExpectedBlocks(table)
    expected.add(one, CHAIN, 0.0)
    expected.add(other, CHAIN[:4], 0.0)
    expected.remove_slot(one)
    expected.remove_slot(one)
    assert (reach(table, one), reach(table, other)) == (0, 4)
    assert table.own_byte(CHAIN[0], other) == ROUTED
    expected.expire(100.0)
    assert len(table) == 0
