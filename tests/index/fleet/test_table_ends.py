from kvtier.index.fleet.table import PrefixEnds, lacking


def test_reach_is_the_last_step_with_any_of_the_bits() -> None:
    ends = PrefixEnds([4, 6, 9], [0x03_07, 0x03_03, 0x02_00], 3)
    assert [ends.reach(0, 1 << bit) for bit in range(4)] == [6, 6, 4, 0]
    assert [ends.reach(1, 1 << bit) for bit in range(3)] == [6, 9, 0]
    assert ends.reach(0, 0b1100) == 4
    assert ends.reach(2, 255) == 0


def test_columns_follow_the_slots_asked_for() -> None:
    ends = PrefixEnds([4, 6], [0x03_07, 0x03_03], 2)
    assert ends.columns([1, None, 0]) == [b"\x03\x03", None, b"\x07\x03"]


def test_empty_ends_reach_nothing() -> None:
    ends = PrefixEnds([], [], 2)
    assert ends.columns([0, 1]) == [b"", b""]
    assert ends.reach(1, 255) == 0


def test_lacking_lists_bytes_without_the_bits() -> None:
    assert set(lacking(0b101)) == {byte for byte in range(256) if not byte & 0b101}
