from pathlib import Path

from rich.console import Console

from kvtier_bench.client import CompletionResult
from kvtier_bench.forked import forked_rows, measure_forked
from kvtier_bench.progress import Steps


def answer(text: str, ttft_s: float, e2e_s: float) -> CompletionResult:
    return CompletionResult(
        text=text, ttft_s=ttft_s, e2e_s=e2e_s, prompt_tokens=9, cached_tokens=0, output_tokens=11
    )


def word_lengths(text: str) -> list[int]:
    return [len(word) for word in text.split()]


def test_forked_rows_judge_slower_faster_and_different_servers() -> None:
    rows = forked_rows(
        {"forked": 6.0, "usual": 36.0},
        {"forked": [answer("a", 1.2, 2.2)], "usual": [answer("b", 1.0, 2.25)]},
    )
    assert {row.name: row.met for row in rows} == {
        "forked/start": None,
        "forked/outputs_different": False,
        "forked/ttft/not_slower": False,
        "forked/ttft/not_faster": True,
        "forked/time_per_output_token/not_slower": True,
        "forked/time_per_output_token/not_faster": False,
    }


def test_measure_forked_asks_both_servers_the_same_prompts(stand_in: Path, tmp_path: Path) -> None:
    steps = Steps(Console(quiet=True), 3)
    rows, details = measure_forked(
        tmp_path,
        lambda text: [len(word) for word in text.split()],
        steps,
        prompts=3,
        scratch=tmp_path,
    )
    assert next(row for row in rows if row.name == "forked/outputs_different").met
    assert {len(times) for times in details.values()} == {3}
