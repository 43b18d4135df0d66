import pytest

from kvtier.router.scorers.prefix_cache import PLUGIN
from tests.router.cases import INDEX, candidate, context, made, request


def score(held: dict[str, int], total: int, tier: str | None = None, **parameters: float) -> float:
    scorer = made(PLUGIN, context(index=INDEX, tier=tier), **parameters)
    [one] = scorer.score(request(total), [candidate(holds=held, total=total)])
    return float(one)


def test_score_is_the_share_of_whole_blocks_held() -> None:
    # 1000 tokens are 62 whole blocks of 16; 496 are 31.
    assert score({"device": 496}, 1000) == 0.5
    assert score({"device": 992}, 1000) == 1.0
    assert score({}, 1000) == 0.0


def test_prompt_shorter_than_a_block_scores_zero() -> None:
    assert score({}, 15) == 0.0
    assert score({}, 0) == 0.0


@pytest.mark.parametrize(
    ("tier", "expected"),
    [("device", 0.25), ("ram", 0.5), ("disk", 0.75), (None, 0.75), ("shared", 0.75)],
)
def test_tier_includes_the_faster_ones(tier: str | None, expected: float) -> None:
    held = {"device": 400, "ram": 800, "disk": 1200}
    assert score(held, 1600, tier) == expected


def test_tier_missing_from_the_match_counts_faster_ones() -> None:
    assert score({"device": 800}, 1600, "ram") == 0.5


def test_match_length_weight_favors_long_matches() -> None:
    # ratio 4096/16384 = 0.25; length (4096/8192)^2 = 0.25
    assert score({"ram": 4096}, 16384, match_length_weight=0.5) == 0.25
    # With a scale of 4096 the length is 1: 0.8 * 1 + 0.2 * 0.25.
    got = score({"ram": 4096}, 16384, match_length_weight=0.8, match_length_scale_tokens=4096)
    assert got == pytest.approx(0.85)


def test_max_match_tokens_limits_the_match() -> None:
    scorer = made(PLUGIN, context(index=INDEX, max_match_tokens=4096))
    long = [
        candidate("a", {"ram": 4096}, 30_000),
        candidate("b", {"ram": 30_000}, 30_000),
        candidate("c", {"ram": 2048}, 30_000),
    ]
    assert scorer.score(request(30_000), long) == [1.0, 1.0, 0.5]


def test_block_size_is_the_one_the_replica_reports() -> None:
    scorer = made(PLUGIN, context(index=INDEX))
    # 640 tokens are 2 whole blocks of 256; 300 tokens are 1.
    [one] = scorer.score(request(640), [candidate(holds={"ram": 300}, total=640, block_tokens=256)])
    assert one == 0.5


def test_reason_gives_the_tokens_held() -> None:
    scorer = made(PLUGIN, context(index=INDEX, tier="ram"))
    said = scorer.reason(request(1000), candidate(holds={"device": 100, "ram": 800}))
    assert said == "800 of 1000 tokens in ram"


def test_parameters_out_of_range_are_rejected() -> None:
    with pytest.raises(ValueError, match="matchLengthWeight is 2"):
        PLUGIN.Parameters(match_length_weight=2.0)
    with pytest.raises(ValueError, match="matchLengthScaleTokens"):
        PLUGIN.Parameters(match_length_weight=0.5, match_length_scale_tokens=0)
    with pytest.raises(ValueError, match="'tape' is not a tier"):
        PLUGIN.Parameters(tier="tape")
    with pytest.raises(ValueError, match="lruCapacityPerServer is -1"):
        PLUGIN.Parameters(lru_capacity_per_server=-1)


def test_match_length_counts_whole_blocks() -> None:
    # With a weight of 1 the score is the length alone: (2048/8192)^2; no match scores 0.
    assert score({"ram": 2048}, 2048, match_length_weight=1.0) == 0.0625
    assert score({"ram": 16384}, 32768, match_length_weight=1.0) == 1.0
    assert score({}, 4096, match_length_weight=1.0) == 0.0
    assert score({}, 0, match_length_weight=1.0) == 0.0
    # Length and ratio count whole blocks only: 2063 tokens are 128 blocks of 2048 tokens.
    assert score({"ram": 2063}, 4096, match_length_weight=0.5) == 0.5 * 0.0625 + 0.5 * 0.5
