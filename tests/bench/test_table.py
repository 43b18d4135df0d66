import io

from rich.console import Console

from kvtier_bench.runs import RunSummary
from kvtier_bench.table import HEADINGS, change, hit_rate_text, summary_cells, summary_table


def summary(ttft_s: float, tokens_per_s: float, hit_rates: dict[str, float]) -> RunSummary:
    return RunSummary(
        mean_ttft_s=ttft_s,
        p90_ttft_s=2 * ttft_s,
        mean_e2e_s=3.0,
        p90_e2e_s=4.0,
        tokens_per_s=tokens_per_s,
        cpu_s_per_request=1.0,
        hit_rates=hit_rates,
    )


ALONE = summary(9.0, 38534.8, {"device": 0.4})
TIERED = summary(6.7, 46751.0, {"device": 0.3, "ram": 0.41, "disk": 0.0})


def test_table_row_shows_change_against_first_row() -> None:
    assert summary_cells(TIERED, ALONE) == [
        "6.70\n(-25.6%)",
        "13.40\n(-25.6%)",
        "3.00\n(+0.0%)",
        "4.00\n(+0.0%)",
        "46751\n(+21.3%)",
        "device 30%\nram 41%",
    ]


def test_first_table_row_shows_no_change() -> None:
    assert summary_cells(ALONE, None)[0] == "9.00"


def test_table_shows_all_columns_and_rows_in_80_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    far = summary(0.9, 152_000.0, {"device": 0.0, "disk": 0.97})
    rows = [("vLLM alone", ALONE), ("vLLM + kvtier (RAM + disk)", TIERED), ("restarted", far)]
    console.print(summary_table("High cache", rows))
    text = console.export_text()
    assert "High cache" in text
    assert "46751" in text
    assert "(+21.3%)" in text
    assert all(heading.split()[0] in text for heading in HEADINGS)
    # On 80 columns nothing is cut off, neither with dots nor silently.
    assert "…" not in text
    assert "disk 97%" in text
    assert "(+294.4%)" in text


def test_change_against_zero_and_small_hit_rates() -> None:
    assert change(1.0, 0.0) == "n/a"
    assert hit_rate_text({"device": 0.0, "ram": 0.004}) == "device 0%"
