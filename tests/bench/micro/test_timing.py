"""Interleaved timing and paired statistics."""

from kvtier_bench.micro.timing import interleave, paired_ratio, spread, throughput
from kvtier_bench.rows import Target


def test_interleave_takes_turns_and_omits_the_warm_up() -> None:
    order: list[str] = []
    seconds = interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warm_up=2
    )
    assert order == ["a", "b"] * 5
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_paired_ratio_is_the_median_of_ratios() -> None:
    # In the second round the machine was slow for both, which does not affect their ratio.
    assert paired_ratio([1.0, 10.0, 2.0], [0.9, 9.0, 1.8]) == 0.9


def test_spread_shows_minimum_and_maximum() -> None:
    assert spread([0.002, 0.001]) == "1.00..2.00 ms over 2 runs"


def test_throughput_ratio_is_the_paired_ratio() -> None:
    row = throughput("x", 2 * 10**9, [1.0, 2.0, 4.0], [0.5, 1.0, 2.0], Target(">=", 0.9), "how")
    assert (row.value, row.unit, row.ratio, row.met) == (1.0, "GB/s", 0.5, False)
    assert row.note == "how, 1000.00..4000.00 ms over 3 runs"
