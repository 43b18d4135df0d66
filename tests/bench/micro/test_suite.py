"""The suite prints each row, marks a miss, and keeps its file whole."""

from kvtier_bench.micro.suite import describe
from kvtier_bench.rows import Target, measured


def test_a_missed_row_says_so_with_its_ratio_and_target() -> None:
    row = measured("x", 8.0, "GB/s", reference=10.0, target=Target(">=", 0.9), note="why")
    line = describe(row)
    assert all(part in line for part in ("missed", "0.80", ">= 0.9", "why"))


def test_a_row_without_target_has_no_verdict() -> None:
    assert "met" not in describe(measured("x", 1.0, "s")).replace("x", "")
