from pathlib import Path

import numpy as np

from kvtier.tiers.base import BlockMove, Outcome
from kvtier_bench.faults.faults import Faults
from kvtier_bench.faults.places import (
    CHAIN_KEYS,
    KNOWN_BLOCKS,
    SLOTS,
    FolderPlace,
    ObjectPlace,
    is_right,
)


def test_chains_share_a_common_beginning() -> None:
    assert CHAIN_KEYS[0][:2] == CHAIN_KEYS[3][:2]
    assert CHAIN_KEYS[0][2:] != CHAIN_KEYS[3][2:]
    assert CHAIN_KEYS[0][0] != CHAIN_KEYS[1][0]
    assert len(SLOTS) > KNOWN_BLOCKS, "there must be more blocks than a tier may know"


def test_is_right_compares_every_byte_of_the_payload() -> None:
    key = CHAIN_KEYS[0][0]
    slot = SLOTS[key].copy()
    assert is_right(key, slot)
    slot[999] ^= np.uint8(1)
    assert not is_right(key, slot)
    assert not is_right(CHAIN_KEYS[0][1], SLOTS[key])


def test_tiers_of_a_place_share_its_store(tmp_path: Path) -> None:
    for place in (FolderPlace(tmp_path, Faults(1)), ObjectPlace("object", Faults(1))):
        one, other = place.open(), place.open()
        keys = CHAIN_KEYS[0][:3]
        outcomes = one.write_from([BlockMove(key, SLOTS[key]) for key in keys], [None, *keys[:-1]])
        assert outcomes == [Outcome.DONE] * 3
        assert other.find(keys) == [Outcome.DONE] * 3
        assert not place.is_lost
        one.close()
        other.close()
        place.clean()
        anew = place.open()
        assert anew.find(keys) == [Outcome.MISSING] * 3
        anew.close()
        place.clean()
    assert list(tmp_path.iterdir()) == []
