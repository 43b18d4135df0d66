import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.errors import InvalidSettings
from kvtier.settings.sizes import (
    approximate_size,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("64GiB", 64 * 2**30),
        ("1.5GiB", 3 * 2**29),
        ("20GB", 20 * 10**9),
        (" 20 gb ", 20 * 10**9),
        ("512Mi", 512 * 2**20),
        ("4096", 4096),
        ("4096B", 4096),
        (4096, 4096),
        (2e10, 20 * 10**9),
    ],
)
def test_parse_size_accepts_units(text: object, size_bytes: int) -> None:
    assert parse_size(text, "ram.capacity") == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        *("", "GiB", "20G", "20GiBs", "-1GiB", "0", "0.5", "1e9", "nan", "1,5GiB", "1_000"),
        *("\u0663GiB", True, None, float("nan"), float("inf"), [1], {"a": 1}, 10**60),
    ],
)
def test_invalid_size_is_refused_with_setting_and_examples(text: object) -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse_size(text, "ram.capacity")
    assert str(caught.value).startswith(f"ram.capacity: {text!r} is not a size")
    assert "64GiB" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("250ms", 0.25), ("2s", 2.0), ("5m", 300.0), ("1h", 3600.0), ("50us", 5e-5)),
        *(("2", 2.0), (2, 2.0), (0.25, 0.25), (1e-07, 1e-07), ("0s", 0.0)),
    ],
)
def test_parse_duration_accepts_units(text: object, seconds: float) -> None:
    assert parse_duration(text, "transfer.drain") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "5 minutes", "-1s", "1d", True, None, float("inf")])
def test_invalid_duration_is_refused_with_setting_and_examples(text: object) -> None:
    with pytest.raises(InvalidSettings, match=r"transfer.drain: .* is not a duration.* 250ms"):
        parse_duration(text, "transfer.drain")


@given(st.integers(min_value=1, max_value=2**63))
def test_format_size_is_exact(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes), "x") == size_bytes


@given(st.floats(min_value=0, max_value=1e9, allow_nan=False))
def test_format_duration_is_exact(seconds: float) -> None:
    assert parse_duration(format_duration(seconds), "x") == seconds


def test_format_size_and_duration_are_short() -> None:
    sizes = [format_size(n) for n in (20 * 2**30, 20 * 10**9, 3 * 2**29, 1, 2**20 + 1)]
    assert sizes == ["20GiB", "20GB", "1536MiB", "1B", "1048577B"]
    assert [format_duration(s) for s in (0.25, 300, 5.0, 0)] == ["250ms", "5m", "5s", "0s"]
    assert [approximate_size(n) for n in (7, 3 * 2**29, 23 * 10**9)] == ["7B", "1.5GiB", "21.4GiB"]
