import pytest

from kvtier.index.fleet.base import IndexSource
from kvtier.router.choose.plugins import (
    EstimatedIndexParameters,
    PreciseIndexParameters,
    TokenProcessorConfig,
)
from kvtier.router.config.indexes import IndexSpec, build_estimated, estimated_spec, precise_spec
from tests.router.cases import Words


def test_estimated_spec_capacity_is_in_blocks_of_16_tokens() -> None:
    spec = estimated_spec(
        "cpu-prefix-cache-scorer",
        EstimatedIndexParameters(auto_tune=False, lru_capacity_per_server=41_000),
    )
    assert spec == IndexSpec(
        name="cpu-prefix-cache-scorer",
        source=IndexSource.ESTIMATED,
        tier="ram",
        autotune=False,
        block_tokens=16,
        capacity_blocks=41_000,
    )
    assert spec.capacity_tokens == 656_000


@pytest.mark.parametrize(
    ("sizing", "block_tokens"),
    [
        (EstimatedIndexParameters(), 16),
        (EstimatedIndexParameters(hash_block_size=64), 16),
        (EstimatedIndexParameters(block_size=256), 64),
        (EstimatedIndexParameters(block_size=2), 1),
        (EstimatedIndexParameters(block_size_tokens=32, block_size=256), 32),
    ],
)
def test_estimated_spec_converts_characters_to_tokens(
    sizing: EstimatedIndexParameters, block_tokens: int
) -> None:
    assert estimated_spec("x", sizing).block_tokens == block_tokens


def test_estimated_spec_limits_match_length_only_if_configured() -> None:
    assert estimated_spec("x", EstimatedIndexParameters()).max_match_tokens == 0
    assert (
        estimated_spec(
            "x", EstimatedIndexParameters(max_prefix_blocks_to_match=256)
        ).max_match_tokens
        == 4096
    )
    both = EstimatedIndexParameters(
        max_prefix_blocks_to_match=256, max_prefix_tokens_to_match=131_072
    )
    assert estimated_spec("x", both).max_match_tokens == 131_072


def test_estimated_spec_tier_is_the_parameter_or_the_hint_in_the_name() -> None:
    assert estimated_spec("gpu-x", EstimatedIndexParameters(tier="disk")).tier == "disk"
    assert estimated_spec("gpu-x", EstimatedIndexParameters()).tier == "device"
    assert estimated_spec("x", EstimatedIndexParameters()).tier is None


def test_precise_spec_has_every_tier() -> None:
    given = PreciseIndexParameters(
        token_processor_config=TokenProcessorConfig(block_size=64),
        kv_events_config={"zmqEndpoint": "tcp://*:5557"},
    )
    spec = precise_spec("gpu", given)
    assert spec.source is IndexSource.PRECISE
    assert spec.tier is None
    assert spec.block_tokens == 64
    assert spec.events == {"zmqEndpoint": "tcp://*:5557"}


def held(spec: IndexSpec, tokens: int, **capacities: int) -> dict[str, int]:
    """Return the tokens held by tier after a prompt was routed to `a` with these capacities."""
    index = build_estimated(spec)
    for tier, capacity_tokens in capacities.items():
        index.resize("a", tier, capacity_tokens)
    prompt = Words(tokens)
    index.routed(prompt, "a")
    [match] = index.match(prompt, ["a"])
    return {tier: tokens for tier, tokens in match.tokens.items() if tokens}


def test_fixed_estimated_index_has_the_configured_tier_and_size() -> None:
    written = IndexSpec(name="cpu", tier="ram", autotune=False, capacity_blocks=10)
    assert held(written, 320) == {"ram": 160}
    assert held(written, 320, ram=320) == {"ram": 160}


def test_autotuned_estimated_index_follows_resize() -> None:
    assert held(IndexSpec(name="gpu", tier="device", capacity_blocks=10), 320, device=320) == {
        "device": 320
    }
    both = held(IndexSpec(name="any", capacity_blocks=10), 320, device=192, ram=320)
    assert both == {"device": 192, "ram": 320}
