from pathlib import Path

import msgspec
import pytest
from prometheus_client.samples import Sample

from kvtier.clock import VirtualClock
from kvtier_bench.client import CompletionResult
from kvtier_bench.lineup import kvtier_transfer
from kvtier_bench.runs import (
    RunSummary,
    disagreements,
    lower_tier_hits,
    median_summary,
    percentile,
    run_workload,
    summarize,
)
from kvtier_bench.server import Server, ServerSettings
from kvtier_bench.workload import Encode, Workload, build_prompts


def answer(ttft_s: float, e2e_s: float, cached: int) -> CompletionResult:
    return CompletionResult(
        text="a",
        ttft_s=ttft_s,
        e2e_s=e2e_s,
        prompt_tokens=100,
        cached_tokens=cached,
        output_tokens=10,
    )


def summary(**changes: object) -> RunSummary:
    fields = {
        "mean_ttft_s": 1.0,
        "p90_ttft_s": 1.0,
        "mean_e2e_s": 1.0,
        "p90_e2e_s": 1.0,
        "tokens_per_s": 1.0,
        "cpu_s_per_request": 1.0,
        "hit_rates": {"device": 0.5},
    }
    return RunSummary(**{**fields, **changes})  # type: ignore[arg-type]


def test_summarize_computes_the_measures_of_a_run() -> None:
    answers = [answer(1.0, 2.0, 50), answer(3.0, 4.0, 90)]
    result = summarize(answers, wall_s=4.0, cpu_s=6.0, hits={"ram": 60, "disk": 20})
    assert result.mean_ttft_s == 2.0
    assert result.p90_ttft_s == pytest.approx(2.8)
    assert result.p90_e2e_s == pytest.approx(3.8)
    assert result.tokens_per_s == pytest.approx(220 / 4)
    assert result.cpu_s_per_request == 3.0
    assert result.hit_rates == pytest.approx({"device": 0.3, "ram": 0.3, "disk": 0.1})


def test_device_hit_rate_is_never_negative() -> None:
    result = summarize([answer(1, 2, 50)], wall_s=1, cpu_s=1, hits={"ram": 60})
    assert result.hit_rates["device"] == 0.0


def test_percentile_of_one_value_and_of_many() -> None:
    assert percentile([7.0], 90) == 7.0
    assert percentile([float(n) for n in range(1, 12)], 90) == 10.0


def test_lower_tier_hits_prefer_the_counters_of_kvtier() -> None:
    samples = [
        Sample("kvtier_hit_tokens_total", {"tier": "ram"}, 5),
        Sample("kvtier_hit_tokens_total", {"tier": "disk"}, 7),
        Sample("vllm:external_prefix_cache_hits_total", {}, 12),
    ]
    assert lower_tier_hits(samples) == {"ram": 5, "disk": 7}
    assert lower_tier_hits(samples[2:]) == {"ram": 12}
    assert lower_tier_hits([]) == {}


def test_median_summary_covers_all_tiers() -> None:
    runs = [
        summary(mean_ttft_s=1.0, hit_rates={"device": 0.2}),
        summary(mean_ttft_s=9.0, hit_rates={"device": 0.4, "ram": 0.3}),
        summary(mean_ttft_s=2.0, hit_rates={"device": 0.6, "ram": 0.1}),
    ]
    result = median_summary(runs)
    assert result.mean_ttft_s == 2.0
    assert result.hit_rates == {"device": 0.4, "ram": 0.1}


def test_disagreements_count_common_requests_only() -> None:
    assert disagreements({"a": "x", "b": "y"}, {"a": "x", "b": "z", "c": "w"}) == 1


def test_run_workload_measures_a_server(
    stand_in: Path, tmp_path: Path, encode: Encode, small: Workload
) -> None:
    prompts = build_prompts(small, encode, seed=3)
    settings = ServerSettings(
        model=Path("model"),
        device_blocks=10,
        log=tmp_path / "s.log",
        kv_transfer=kvtier_transfer(2**30),
    )
    clock = VirtualClock()
    with Server(settings) as server:
        server.start(lambda news: None)
        first = run_workload(server, small, prompts, clock=clock)
        again = run_workload(server, small, prompts, clock=clock)
        salted = run_workload(server, small, prompts, salt="mine", clock=clock)
        server.reset_device()
        found = run_workload(server, small, prompts, salt="mine", clock=clock)
        server.reset_device()
        found_again = run_workload(server, small, prompts, salt="mine", clock=clock)
    assert set(first.texts) == {prompt.label for prompt in prompts}
    assert first.texts == again.texts == found.texts
    # Each group has one miss and then device hits, and no hits from the earlier run.
    share = 256 * 3 / (304 * 4)
    for run in (first, again, salted):
        assert run.summary.hit_rates["device"] == pytest.approx(share)
    for run in (found, found_again):
        assert run.summary.hit_rates["ram"] == pytest.approx(256 / (304 * 4))
    assert msgspec.to_builtins(first.summary)["tokens_per_s"] > 0
