import pytest

from kvtier.connectors.vllm.versions import supported
from kvtier.errors import InvalidSettings


@pytest.mark.parametrize(
    ("version", "release"),
    [("0.32.0", (0, 32)), ("0.33.0", (0, 33)), ("0.33.1rc1+cu130", (0, 33))],
)
def test_the_tested_range_is_accepted(version: str, release: tuple[int, int]) -> None:
    assert supported(version) == release


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "1.0.0", "0.3.2", "dev", ""])
def test_others_are_refused_with_the_range(version: str) -> None:
    with pytest.raises(InvalidSettings, match=r">= 0\.32 and < 0\.34"):
        supported(version)
