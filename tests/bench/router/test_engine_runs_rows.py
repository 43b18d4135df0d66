import pytest

from kvtier_bench.router import contest
from kvtier_bench.router.contest import OTHERS, OURS, TIERED
from kvtier_bench.router.engine_runs import RouterRun, RouterRuns, engine_rows
from kvtier_bench.router.traffic import ArrivalResult
from kvtier_bench.runs import RunSummary


def run(mean_s: float, errors: int = 0, wrong: int = 0) -> RouterRun:
    summary = RunSummary(
        mean_ttft_s=mean_s,
        p90_ttft_s=2 * mean_s,
        mean_e2e_s=3.0,
        p90_e2e_s=4.0,
        tokens_per_s=5.0,
        cpu_s_per_request=6.0,
        hit_rates={"device": 0.25, "ram": 0.5},
    )
    return RouterRun(
        summary=summary,
        p50_ttft_s=mean_s / 2,
        by_replica=[6, 2],
        errors=errors,
        wrong=wrong,
        router_cpu_s=0.1,
        answers=[ArrivalResult(label="0/0", due_s=0.0, late_s=0.0)] * 8,
    )


def everybody() -> RouterRuns:
    runs = {name: [run(1.0), run(3.0), run(2.0)] for name in OTHERS}
    runs[contest.DEFAULT] = [run(0.5), run(2.7), run(1.5)]
    runs[TIERED] = [run(2.0), run(3.0), run(4.0)]
    return runs


def test_rows_compare_kvtier_with_each_other_router_by_medians() -> None:
    rows = {row.name: row for row in engine_rows(everybody(), {})}
    judged = [name for name in rows if " against " in name]
    assert len(judged) == len(OURS) * len(OTHERS)
    row = rows[f"real replicas, {contest.DEFAULT} against {contest.PEER_KV_AWARE}: mean TTFT"]
    assert (row.value, row.reference, row.ratio, row.met) == (1.5, 2.0, 0.75, True)
    assert "0.75 (0.5 to 0.9, n=3)" in row.note
    lost = rows[f"real replicas, {TIERED} against {contest.ROUND_ROBIN}: mean TTFT"]
    assert (lost.ratio, lost.met) == (1.5, False)


def test_rows_of_every_router_show_medians_and_spread() -> None:
    rows = {row.name: row for row in engine_rows(everybody(), {})}
    name = f"real replicas, {contest.PEER_CACHE_AWARE}"
    assert rows[f"{name}: mean TTFT"].value == 2.0
    assert "(1 to 3, n=3)" in rows[f"{name}: mean TTFT"].note
    assert rows[f"{name}: p50 TTFT"].value == 1.0
    assert rows[f"{name}: p90 TTFT"].value == 4.0
    assert rows[f"{name}: hit rate, ram"].value == 0.5
    assert rows[f"{name}: requests at the busier replica"].value == pytest.approx(0.75)


def test_failed_or_wrong_requests_miss_the_target() -> None:
    runs = {contest.DEFAULT: [run(1.0, errors=1), run(1.0, wrong=2)], TIERED: [run(1.0)]}
    rows = {row.name: row for row in engine_rows(runs, {TIERED: 1})}
    what = "requests that failed, or were answered otherwise than asked"
    assert rows[f"real replicas, {contest.DEFAULT}: {what}"].value == 3
    assert rows[f"real replicas, {TIERED}: {what}"].value == 1
    assert not any(rows[f"real replicas, {name}: {what}"].met for name in runs)


def test_router_without_runs_has_no_rows() -> None:
    names = [row.name for row in engine_rows({TIERED: [run(1.0)], contest.DEFAULT: []}, {})]
    assert not any("against" in name or contest.DEFAULT in name for name in names)
