import pytest

from kvtier_bench.lineup import ALONE, KVTIER_RAM, LIMIT, NATIVE
from kvtier_bench.rows import Row
from kvtier_bench.runs import Run, RunSummary
from kvtier_bench.verdict import Runs, gap_closed, half_spread, spread_text, workload_rows


def run(tokens_per_s: float, ttft_s: float, cpu_s: float = 1.0, text: str = "same") -> Run:
    summary = RunSummary(
        mean_ttft_s=ttft_s,
        p90_ttft_s=ttft_s,
        mean_e2e_s=1.0,
        p90_e2e_s=1.0,
        tokens_per_s=tokens_per_s,
        cpu_s_per_request=cpu_s,
        hit_rates={"device": 0.5},
    )
    return Run(summary=summary, texts={"0/0": text, "0/1": "same"})


def rows_of(runs: Runs, *, fits_device: bool = False) -> dict[str, Row]:
    return {row.name: row for row in workload_rows("high", runs, fits_device=fits_device)}


@pytest.fixture
def high() -> Runs:
    return {
        ALONE: [run(1000, 2.0), run(1100, 2.2), run(900, 1.8)],
        NATIVE: [run(1700, 1.1), run(1700, 1.1), run(1700, 1.1)],
        KVTIER_RAM: [run(1950, 1.05), run(1900, 1.1), run(2000, 1.0)],
        LIMIT: [run(2000, 1.0), run(2000, 1.0), run(2000, 1.0)],
    }


def test_gap_closed_is_relative_to_alone_and_limit(high: Runs) -> None:
    rows = rows_of(high)
    throughput = rows[f"high/{KVTIER_RAM}/gap_closed/tokens_per_s"]
    assert (throughput.value, throughput.met) == (pytest.approx(0.95), True)
    ttft = rows[f"high/{KVTIER_RAM}/gap_closed/mean_ttft_s"]
    assert (ttft.value, ttft.met) == (pytest.approx(0.95), True)
    # CPU seconds are informative only.
    assert rows[f"high/{KVTIER_RAM}/gap_closed/cpu_s_per_request"].met is None


def test_small_gain_misses_the_target(high: Runs) -> None:
    high[KVTIER_RAM] = [run(1500, 1.5)] * 3
    rows = rows_of(high)
    assert rows[f"high/{KVTIER_RAM}/gap_closed/tokens_per_s"].met is False
    assert rows[f"high/{KVTIER_RAM}/gap_closed/mean_ttft_s"].met is False
    assert rows[f"high/{KVTIER_RAM}/tokens_per_s_against_{NATIVE}"].met is False
    assert rows[f"high/{KVTIER_RAM}/mean_ttft_s_against_{NATIVE}"].met is False


def test_better_result_than_the_peers_meets_the_target(high: Runs) -> None:
    rows = rows_of(high)
    assert rows[f"high/{KVTIER_RAM}/tokens_per_s_against_{NATIVE}"].met is True
    assert rows[f"high/{KVTIER_RAM}/mean_ttft_s_against_{NATIVE}"].met is True


def test_measures_are_compared_with_vllm_alone(high: Runs) -> None:
    row = rows_of(high)[f"high/{KVTIER_RAM}/tokens_per_s"]
    assert (row.value, row.reference, row.ratio) == (1950, 1000, pytest.approx(1.95))
    assert "n=3" in row.note
    assert rows_of(high)[f"high/{ALONE}/tokens_per_s"].reference is None


def test_different_outputs_are_counted(high: Runs) -> None:
    high[KVTIER_RAM][1] = run(1900, 1.1, text="other")
    row = rows_of(high)[f"high/{KVTIER_RAM}/outputs_different"]
    assert (row.value, row.met) == (1, None)
    assert row.note.startswith("of 6")


@pytest.mark.parametrize(("cpu_s", "met"), [(1.005, True), (1.02, False)])
def test_cpu_overhead_has_a_target_if_the_workload_fits_the_device(cpu_s: float, met: bool) -> None:
    runs = {ALONE: [run(1000, 1.0, 1.0)] * 3, KVTIER_RAM: [run(1000, 1.0, cpu_s)] * 3}
    rows = rows_of(runs, fits_device=True)
    assert rows[f"high/{KVTIER_RAM}/cpu_per_request_against_alone"].met is met
    assert not any("gap_closed" in name for name in rows)


def test_result_equal_within_the_spread_meets_the_target() -> None:
    alone = [run(1000, 1.0)] * 5
    noisy = [run(each, 1.0) for each in (950, 980, 990, 1020, 1050)]
    slower = [run(900, 1.0)] * 5
    name = f"high/{KVTIER_RAM}/tokens_per_s_against_{ALONE}"
    assert rows_of({ALONE: alone, KVTIER_RAM: noisy}, fits_device=True)[name].met is True
    assert rows_of({ALONE: alone, KVTIER_RAM: slower}, fits_device=True)[name].met is False


def test_contestants_that_did_not_run_have_no_rows(high: Runs) -> None:
    only_us = rows_of({KVTIER_RAM: high[KVTIER_RAM]})
    assert f"high/{KVTIER_RAM}/tokens_per_s" in only_us
    assert not any("against" in name or "gap" in name for name in only_us)


def test_gap_closed_without_a_gap_and_spread_of_one_value() -> None:
    assert gap_closed(1.0, 1.0, 1.0) == 0.0
    assert gap_closed(2.0, 1.5, 1.0) == 0.5
    assert half_spread([3.0]) == 0.0
    assert half_spread([1.0, 2.0, 3.0]) == 0.5
    assert spread_text([1.0, 2.0, 4.0]) == "median 2 (1 to 4, n=3)"
