from kvtier.index.fleet.table import ABSENT, CUMULATIVE, HELD, KNOWN, LEVELS, LOWEST, Levels


def test_cumulative_counts_for_every_slower_level() -> None:
    for raw in range(128):
        for level in range(LEVELS):
            is_held = any(raw >> faster & 1 for faster in range(level + 1))
            assert bool(CUMULATIVE[raw] >> level & 1) == is_held
        assert CUMULATIVE[raw] <= HELD
        assert LOWEST[raw] == next((n for n in range(LEVELS) if raw >> n & 1), ABSENT)


def test_names_keep_their_level_and_unknown_tiers_rank_last() -> None:
    levels = Levels()
    assert levels.used == (0,)
    assert [levels.use(name) for name in ("ram", "peer", "device", "tape")] == [1, 5, 0, 6]
    assert levels.use("one too many") is None
    assert levels.use("peer") == 5
    assert [levels.name(level) for level in levels.used] == ["device", "ram", "peer", "tape"]
    assert len(KNOWN) + 2 == LEVELS
