import io
from pathlib import Path

import pytest
from rich.console import Console

from kvtier.clock import VirtualClock
from kvtier_bench import ttft
from kvtier_bench.client import CompletionResult
from kvtier_bench.progress import Steps
from kvtier_bench.ttft import Samples, drop_page_cache, measure_ttft, ttft_rows
from kvtier_bench.workload import Encode


def answers(*ttfts_s: float, text: str = "same") -> list[CompletionResult]:
    return [
        CompletionResult(
            text=text,
            ttft_s=each,
            e2e_s=each + 1,
            prompt_tokens=5300,
            cached_tokens=5248,
            output_tokens=8,
        )
        for each in ttfts_s
    ]


@pytest.fixture
def samples() -> Samples:
    return {
        (5300, "cold"): answers(5.0, 5.2, 5.1),
        (5300, "device"): answers(0.20, 0.21, 0.19),
        (5300, "ram"): answers(0.24, 0.25, 0.23),
        (5300, "disk"): answers(0.44, 0.45, 0.46),
        (5300, "device-after-disk"): answers(0.20, 0.22, 0.21),
        (5300, "shared"): answers(0.40, 0.41, 0.42),
        (5300, "device-after-shared"): answers(0.20, 0.21, 0.22),
    }


def test_rows_have_medians_ratios_and_verdicts(samples: Samples) -> None:
    rows = {row.name: row for row in ttft_rows(samples, page_cache_dropped=True)}
    assert (rows["ttft/5300/ram"].ratio, rows["ttft/5300/ram"].met) == (pytest.approx(1.2), True)
    assert rows["ttft/5300/cold_over_ram"].met is True
    # A disk hit is compared with device hits of the same process.
    assert rows["ttft/5300/disk"].ratio == pytest.approx(0.45 / 0.21)
    assert rows["ttft/5300/disk"].met is False
    assert rows["ttft/5300/outputs_different"].met is True


def test_hit_that_changes_an_answer_misses_the_target(samples: Samples) -> None:
    samples[5300, "disk"][1:2] = answers(0.45, text="other")
    rows = {row.name: row for row in ttft_rows(samples, page_cache_dropped=True)}
    assert rows["ttft/5300/outputs_different"].value == 1
    assert rows["ttft/5300/outputs_different"].met is False


def test_note_says_if_the_page_cache_was_not_dropped(samples: Samples) -> None:
    rows = {row.name: row for row in ttft_rows(samples, page_cache_dropped=False)}
    assert "NOT dropped" in rows["ttft/5300/disk"].note
    assert "NOT dropped" not in rows["ttft/5300/ram"].note


def test_drop_page_cache_without_permission_is_false(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ttft, "PAGE_CACHE", tmp_path / "nowhere" / "drop_caches")
    assert drop_page_cache() is False
    monkeypatch.setattr(ttft, "PAGE_CACHE", tmp_path / "drop_caches")
    assert drop_page_cache() is True
    assert (tmp_path / "drop_caches").read_text() == "3"


def test_prefix_is_found_in_the_tier_of_each_state(
    stand_in: Path, tmp_path: Path, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ttft, "PAGE_CACHE", tmp_path / "drop_caches")
    steps = Steps(Console(file=io.StringIO()), 3)
    rows, details = measure_ttft(
        Path("model"), encode, steps, repeats=2, scratch=tmp_path / "s", clock=VirtualClock()
    )
    by_name = {row.name: row for row in rows}
    share = 256 / 5300
    states = {"cold": 0.0, "device": share, "ram": share, "disk": share, "shared": share}
    for state, cached in states.items():
        note = by_name[f"ttft/5300/{state}"].note
        assert f"cached median {cached:.4g}" in note
    assert by_name["ttft/1700/outputs_different"].value == 0
    assert len(details["5300/disk"]) == 2
    # Each of the 4 prompts is found once in each state, according to the engine's own log.
    for log, found in [
        ("ttft.log", {"nowhere": 4, "device": 4, "ram": 4}),
        ("ttft-disk.log", {"disk": 4, "device": 4}),
        ("ttft-shared.log", {"shared": 4, "device": 4}),
    ]:
        lines = (tmp_path / "s" / log).read_text().splitlines()
        assert {state: lines.count(f"found {state} ttft") for state in found} == found
    assert {each.suffix for each in (tmp_path / "s").iterdir()} == {".log"}
