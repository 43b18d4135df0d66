import pytest

from kvtier.router.choose.plugins import BackendWeight, IndexerConfig
from kvtier.router.scorers.precise_prefix_cache import PLUGIN
from tests.router.cases import INDEX, candidate, context, made, request


def score(held: dict[str, int], total: int, *backends: BackendWeight) -> float:
    scorer = made(PLUGIN, context(index=INDEX), indexer_config=IndexerConfig(backends))
    [one] = scorer.score(request(total), [candidate(holds=held, total=total)])
    return float(one)


def test_block_has_the_weight_of_its_fastest_tier() -> None:
    # Of 10 blocks of 16, 4 are on the device and 3 more in RAM: (4 * 1.0 + 3 * 0.8) / 10.
    assert score({"device": 64, "ram": 112}, 160) == pytest.approx(0.64)


def test_shared_tokens_count_once_and_partial_blocks_do_not_count() -> None:
    # RAM holds less than the device: 8 of 10 blocks at 1.0.
    assert score({"device": 128, "ram": 64}, 160) == pytest.approx(0.8)
    # 170 tokens are 10 whole blocks: 5 in RAM at 0.8 and 3 more on disk at 0.6.
    assert score({"ram": 80, "disk": 128}, 170) == pytest.approx((5 * 0.8 + 3 * 0.6) / 10)
    assert score({}, 160) == 0.0
    assert score({}, 0) == 0.0


def test_slow_tiers_weigh_less_by_default() -> None:
    assert score({"device": 160}, 160) == 1.0
    assert score({"disk": 160}, 160) == pytest.approx(0.6)
    assert score({"objectstore": 160}, 160) == pytest.approx(0.2)


def test_unknown_tier_weighs_as_little_as_the_slowest() -> None:
    assert score({"tape": 160}, 160) == pytest.approx(0.2)


def test_weights_are_configurable_by_tier_alias() -> None:
    # 5 of 10 blocks in RAM at 0.5.
    assert score(
        {"ram": 80}, 160, BackendWeight("gpu", 1.0), BackendWeight("cpu", 0.5)
    ) == pytest.approx(0.25)


def test_prompt_shorter_than_a_block_scores_zero() -> None:
    assert score({}, 10) == 0.0


def test_unknown_tier_and_invalid_weight_are_rejected() -> None:
    with pytest.raises(ValueError, match="'tape' is not a tier"):
        PLUGIN.Parameters(indexer_config=IndexerConfig((BackendWeight("tape", 1.0),)))
    with pytest.raises(ValueError, match=r"cpu has weight 1\.2"):
        PLUGIN.Parameters(indexer_config=IndexerConfig((BackendWeight("cpu", 1.2),)))


def test_reason_lists_tokens_by_tier() -> None:
    scorer = made(PLUGIN, context(index=INDEX))
    said = scorer.reason(request(), candidate(holds={"device": 64, "ram": 160}))
    assert said == "64 in device, 96 in ram of 1000 tokens"
    assert scorer.reason(request(), candidate()) == "none of 1000 tokens"
