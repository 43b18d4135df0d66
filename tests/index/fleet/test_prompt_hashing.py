import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.index.fleet.prompt import NUMBERS_MAX, Hasher, Scope, hash_of, process_hasher

NUMBERS = st.lists(st.integers(0, 2**32 - 1), max_size=300)


def array(numbers: list[int]) -> np.ndarray:
    return np.array(numbers, dtype=np.uint32)


@given(NUMBERS, st.integers(1, 40), st.integers(0, 2**64 - 1))
def test_chain_equals_extending_block_by_block(numbers, block, seed) -> None:
    hasher = Hasher(b"fixed")
    state, expected = seed, []
    for start in range(0, len(numbers) // block * block, block):
        state = hasher.extend(state, start, numbers[start : start + block])
        expected.append(hash_of(state))
    assert hasher.chain(array(numbers), seed, block) == expected


@given(NUMBERS)
def test_extend_in_parts_equals_extend_at_once(numbers) -> None:
    hasher = Hasher(b"fixed")
    parts = 5
    for number in range(0, len(numbers), 7):
        parts = hasher.extend(parts, number, numbers[number : number + 7])
    assert hasher.extend(5, 0, numbers) == parts


def test_hash_matches_its_definition() -> None:
    """seed + sum((number + 1) * factor), the upper 60 bits of 64."""
    hasher = Hasher(b"fixed")
    factors = [hasher.extend(0, place, [0]) for place in range(3)]
    whole = (9 + 8 * factors[0] + 1 * factors[1] + 6 * factors[2]) % 2**64
    assert hasher.chain(array([7, 0, 5]), 9, 3) == [whole >> 4]
    assert len(set(factors)) == 3


def test_zeros_change_the_hash() -> None:
    hashes = Hasher().chain(array([0] * 4096), 0, 1)
    assert len(set(hashes)) == 4096


def test_same_secret_gives_same_hashes_after_growth() -> None:
    one, other = Hasher(b"secret"), Hasher(b"secret")
    numbers = array(list(range(70_000)))
    one.chain(numbers[:10], 0, 1)
    assert one.chain(numbers, 3, 16) == other.chain(numbers, 3, 16)
    assert one.chain(numbers, 3, 16) != Hasher(b"another").chain(numbers, 3, 16)


def test_factors_differ_between_hashers() -> None:
    assert Hasher().seed(Scope("m")) != Hasher().seed(Scope("m"))
    assert process_hasher() is process_hasher()


def test_seed_depends_on_each_part_of_scope() -> None:
    hasher = Hasher()
    scopes = [Scope("m"), Scope("n"), Scope("m", "s"), Scope("m", "", "character"), Scope("ms")]
    assert len({hasher.seed(scope) for scope in scopes}) == len(scopes)


def test_chain_stops_at_numbers_max() -> None:
    hasher = Hasher()
    hashes = hasher.chain(np.zeros(NUMBERS_MAX + 64, dtype=np.uint32), 0, 16)
    assert len(hashes) == NUMBERS_MAX // 16
    with pytest.raises(ValueError, match="NUMBERS_MAX"):
        hasher.extend(0, NUMBERS_MAX, [1])


def test_hashes_are_below_60_bits() -> None:
    assert max(Hasher().chain(array(list(range(5000))), 0, 1)) < 2**60


def test_seeds_are_cached_within_limit_and_stay_the_same() -> None:
    hasher = Hasher(b"fixed")
    first = [hasher.seed(Scope("m", str(salt))) for salt in range(3000)]
    assert len(hasher._seeds) <= 1024
    assert [hasher.seed(Scope("m", str(salt))) for salt in range(3000)] == first
    assert len(set(first)) == 3000
