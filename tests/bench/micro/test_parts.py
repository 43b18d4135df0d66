"""Chains of keys, and the RAM-only cache."""

from kvtier_bench.micro.parts import chain, parents, ram_cache


def test_chains_share_no_keys_and_link_to_parents() -> None:
    first, second = chain(1, 3), chain(2, 3)
    assert len({*first, *second}) == 6
    assert all(len(key) == 36 for key in first)
    assert parents(first) == [None, first[0], first[1]]


def test_ram_cache_finds_saved_blocks() -> None:
    cache = ram_cache(4, 4096)
    save = cache.begin_save(chain(1, 3), parents(chain(1, 3)))
    assert save is not None
    cache.end_save(save)
    assert cache.lookup(chain(1, 4)) == 3
    cache.close()
