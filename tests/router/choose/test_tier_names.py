import pytest

from kvtier.index.fleet.base import Match
from kvtier.router.choose.base import Candidate
from kvtier.router.choose.tier_names import (
    added_tokens,
    longest,
    match_of,
    tier_called,
    tier_hinted,
    tokens_in,
)
from tests.router.cases import candidate, endpoint


@pytest.mark.parametrize(
    ("name", "tier"),
    [("gpu", "device"), ("GPU", "device"), ("cpu", "ram"), ("disk", "disk"), ("", None)],
)
def test_tier_called_resolves_aliases(name: str, tier: str | None) -> None:
    assert tier_called(name) == tier


def test_tier_called_rejects_an_unknown_tier() -> None:
    with pytest.raises(ValueError, match="'tape' is not a tier; write one of device, ram, disk"):
        tier_called("tape")


@pytest.mark.parametrize(
    ("name", "tier"),
    [
        ("gpu-prefix-cache-scorer", "device"),
        ("cpu-prefix-cache-scorer", "ram"),
        ("cpuPrefixProducer", "ram"),
        ("CPUPrefixProducer", "ram"),
        ("prefixOnDisk", "disk"),
        ("prefix-cache-scorer", None),
        ("gpu-and-cpu", None),
        ("ramparts", None),
        ("multi-host-scorer", None),
        ("shared-prefix-scorer", None),
    ],
)
def test_tier_hinted_finds_a_tier_in_a_name(name: str, tier: str | None) -> None:
    assert tier_hinted(name) == tier


def test_added_tokens_exclude_those_of_faster_tiers() -> None:
    held = {"tape": 900, "disk": 800, "ram": 500, "device": 500}
    assert added_tokens(Match(held, 1000)) == [("device", 500), ("disk", 300), ("tape", 100)]
    assert added_tokens(Match({}, 1000)) == []
    # With two independent estimates, tokens on the device need not be loaded.
    assert added_tokens(Match({"device": 700, "ram": 200}, 1000)) == [("device", 700)]


def test_tokens_in_include_the_faster_tiers() -> None:
    match = Match({"device": 100, "disk": 300, "tape": 400}, 1000)
    assert [tokens_in(match, tier) for tier in ("device", "ram", "disk", "tape", None)] == [
        100,
        100,
        300,
        400,
        400,
    ]


def test_match_of_one_index_or_the_longest_of_all() -> None:
    two = Candidate(
        endpoint(),
        {"a": Match({"device": 5, "ram": 7}, 10), "b": Match({"ram": 9, "disk": 1}, 10)},
    )
    assert match_of(two, "a") == Match({"device": 5, "ram": 7}, 10)
    assert match_of(two, "c") == Match({}, 0)
    assert match_of(two, None) == Match({"device": 5, "ram": 9, "disk": 1}, 10)
    one = candidate(holds={"ram": 3})
    assert match_of(one, None) is one.matches["prefix"]
    assert longest([]) == Match({}, 0)
