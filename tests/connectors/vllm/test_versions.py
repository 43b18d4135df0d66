import pytest

from kvtier.connectors.vllm.versions import supported
from kvtier.errors import InvalidSettings
from tests.cases import case


def test_versions_in_the_tested_range_are_supported() -> None:
    releases = {"0.32.0": (0, 32), "0.33.0": (0, 33), "0.33.1rc1+cu130": (0, 33)}
    assert {version: supported(version) for version in releases} == releases


def test_other_versions_are_rejected_with_the_range() -> None:
    for version in ("0.31.9", "0.34.0", "1.0.0", "0.3.2", "dev", ""):
        with case(version), pytest.raises(InvalidSettings, match=r">= 0\.32 and < 0\.34"):
            supported(version)
