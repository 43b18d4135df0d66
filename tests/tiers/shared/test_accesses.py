"""Readers tell whoever cleans what they read."""

from tests.tiers.shared.segments import Tiers, keys, read, write


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
