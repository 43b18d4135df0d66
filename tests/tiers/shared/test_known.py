"""What a process remembers of a store."""

from tests.tiers.shared.segments import DONE, Tiers, keys, read, write


def test_what_is_remembered_is_bounded(tiers: Tiers) -> None:
    tier = tiers.open(1, known_blocks=4)
    write(tier, keys(10))
    assert sum(tier.contains(keys(10))) == 4
    assert read(tier, keys(10)) == [DONE] * 10
