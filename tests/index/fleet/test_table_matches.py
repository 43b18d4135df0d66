from kvtier.index.fleet.base import DEVICE, Match
from kvtier.index.fleet.table import ROUTED, Levels, PrefixEnds, merged

DISK = 0b100


def levels() -> Levels:
    made = Levels()
    made.use("disk")
    return made


def ends(*steps: tuple[int, dict[int, int]]) -> PrefixEnds:
    """Create PrefixEnds from steps: a length, and the bits of each slot."""
    masks = [sum(bits << 8 * slot for slot, bits in of.items()) for _, of in steps]
    return PrefixEnds([length for length, _ in steps], masks, 4)


def test_matches_are_tokens_by_tier_and_equal_ones_one_object() -> None:
    found = ends((3, {1: 1 | DISK, 3: 1 | DISK}), (4, {1: DISK, 3: DISK}), (5, {}))
    one, other, third, unknown = found.matches([3, 2, 1, None], levels(), 16, 100)
    assert one.tokens == {DEVICE: 48, "disk": 64}
    assert list(one.tokens) == [DEVICE, "disk"]
    assert other.tokens == {DEVICE: 0, "disk": 0}
    assert one is third
    assert one.total_tokens == 100
    assert unknown == Match({}, 100)


def test_routed_blocks_count_for_the_device() -> None:
    found = ends((3, {1: 1 | DISK | ROUTED}), (7, {1: DISK | ROUTED}), (9, {1: DISK}))
    assert found.matches([1], levels(), 10, 100)[0].tokens == {DEVICE: 70, "disk": 90}


def test_caps_end_held_but_not_routed_blocks() -> None:
    found = ends((3, {1: 1 | DISK | ROUTED, 2: 1 | DISK}), (7, {1: 1 | DISK, 2: 1 | DISK}))
    one, other = found.matches([1, 2], levels(), 10, 100, {1: {0: 2, 2: 5}})
    assert one.tokens == {DEVICE: 30, "disk": 50}
    assert other.tokens == {DEVICE: 70, "disk": 70}


def test_merged_takes_the_part_that_knows_the_replica() -> None:
    known, nothing = Match({DEVICE: 0}, 5), Match({}, 5)
    assert merged([[nothing, known, nothing], [known, nothing, nothing]]) == [
        known,
        known,
        nothing,
    ]
