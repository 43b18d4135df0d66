from collections.abc import Mapping

import pytest

from kvtier import settings
from kvtier.errors import InvalidSettings
from kvtier.settings import RamSettings
from kvtier.settings.compat.vllm import ENGINE_KEYS, translate


def test_vllm_keys_are_translated() -> None:
    extra_config = {
        "spec_name": "KVTier",
        "spec_module_path": "kvtier.connectors.vllm.spec",
        "block_size": 256,
        "cpu_bytes_to_use": 10737418240,
        "eviction_policy": "arc",
        "store_threshold": 2,
        "max_tracker_size": 64000,
        "self_describing_kv_events": True,
    }
    assert settings.load(extra_config, env={}).ram == RamSettings(
        capacity=10 * 2**30, eviction="arc", admission="second_touch"
    )


@pytest.mark.parametrize("threshold", [0, 1, "1"])
def test_store_threshold_below_two_keeps_default_admission(threshold: object) -> None:
    assert translate({"ram": 1, "store_threshold": threshold}, "x") == {"ram": 1}


def test_vllm_keys_and_kvtier_keys_can_be_combined() -> None:
    mixed = {"ram": {"admission": "second_touch"}, "cpu_bytes_to_use": 1}
    assert translate(mixed, "x") == {"ram": {"admission": "second_touch", "capacity": 1}}
    assert translate({"ram": "1GiB", "eviction_policy": "lru"}, "x") == {
        "ram": {"capacity": "1GiB", "eviction": "lru"}
    }


def test_engine_keys_are_separated_from_kvtier_keys() -> None:
    extra_config = {**dict.fromkeys(ENGINE_KEYS, 1), "disk": "/x=1GB", "dsk": 1}
    assert translate(extra_config, "x") == {"disk": "/x=1GB", "dsk": 1}
    assert translate({"secondary_tiers": []}, "x") == {}


@pytest.mark.parametrize(
    ("extra_config", "message"),
    [
        ({"cpu_bytes_to_use": "much"}, "x: cpu_bytes_to_use: 'much' is not a size"),
        ({"eviction_policy": "MyPolicy"}, "x: eviction_policy: .*'MyPolicy'.*lru"),
        ({"store_threshold": "two"}, "x: store_threshold: 'two' is not a whole number"),
        ({"secondary_tiers": [{"type": "fs"}]}, 'x: secondary_tiers: .*"disk": "/path=100GiB"'),
        (
            {"cache_policy_module_path": "a.b"},
            "x: cache_policy_module_path: .*choose one of its own with",
        ),
        ({"ram": 1, "cpu_bytes_to_use": 1}, "x: ram.capacity .* cpu_bytes_to_use; remove that"),
    ],
)
def test_unsupported_key_is_refused(extra_config: Mapping[str, object], message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        translate(extra_config, "x")
