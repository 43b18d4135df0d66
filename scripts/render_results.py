"""Write what was measured: the README's tables, docs/reference/measured.md and docs/engine.png.

Every number comes from the newest file of its kind in benchmarks/results (`engine-*.json`,
`ttft-*.json`, ...); a test fails while the committed text differs from what this writes.
Run it as `python scripts/render_results.py` from the repository's root.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from kvtier_bench.lineup import lineup
from kvtier_bench.plot import draw_summaries
from kvtier_bench.rows import Report, Row, read_report
from kvtier_bench.runs import RunSummary, median_summary
from kvtier_bench.table import HEADINGS, summary_cells

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: written by scripts/render_results.py -->", "<!-- end of results -->"
PLOTTED = "high-1.7"
KINDS = ("micro", "storage-peers", "evict", "ttft", "engine", "router", "router-engines")
"""Of what has rows with targets, in the order shown. Routers before real engines take so long
that they have a file of their own."""


def newest(kind: str, results: Path) -> Path:
    """The newest result file of a kind; dates in names sort."""
    return sorted(results.glob(f"{kind}-[0-9]*.json"))[-1]


def judged_files(results: Path) -> list[Path]:
    """The newest of every kind that has any."""
    return [newest(kind, results) for kind in KINDS if any(results.glob(f"{kind}-[0-9]*.json"))]


def summaries(report: Report, workload: str) -> list[tuple[str, RunSummary]]:
    """Title and median run of every contestant that ran, in the order of the lineup."""
    runs = report.details["runs"][workload]
    return [
        (
            contestant.title,
            median_summary(
                [msgspec.convert(run, RunSummary) for run in runs[contestant.name]],
            ),
        )
        for contestant in lineup(Path()).values()
        if contestant.name in runs
    ]


def render_readme(engine: Path, ttft: Path) -> str:
    """The README's section, markers included."""
    report = read_report(engine)
    rounds = len(next(iter(report.details["runs"][PLOTTED].values())))
    lines = [
        BEGIN,
        "## What it gains",
        "",
        f"Medians of {rounds} interleaved rounds of the High cache and Low cache workloads of the "
        "CPU-offloading guide, scaled to a machine without a GPU; in brackets the change against "
        "vLLM alone. The limit is vLLM alone with a device cache that holds everything.",
    ]
    for workload in report.details["workloads"]:
        lines += ["", f"**{workload['title']}**", "", *_table(summaries(report, workload["name"]))]
    lines += [
        "",
        *_first_tokens(read_report(ttft)),
        "",
        f"{_origin(report, engine)}; times to first token: `{ttft.relative_to(ROOT)}`. "
        "Every target, met or missed: "
        "[docs/reference/measured.md](docs/reference/measured.md).",
        END,
    ]
    return "\n".join(lines)


def render_measured(paths: Sequence[Path]) -> str:
    """docs/reference/measured.md: every row that has a target, misses included."""
    lines = [
        "# Measured",
        "",
        "<!-- Written by scripts/render_results.py; do not edit. -->",
        "",
        "Every row with a target. The target judges the ratio to the reference where there is one,",
        "and the value where there is none. What a row's reference is, and the runs behind it,",
        "stand in the result files.",
    ]
    shown: set[str] = set()  # what has a kind of its own now also stands in older files
    for path in paths:
        report = read_report(path)
        lines += ["", f"## {report.kind}", "", _origin(report, path) + ".", ""]
        lines += ["| | row | value | ratio | target | note |", "|---|---|---|---|---|---|"]
        judged = [row for row in report.rows if row.met is not None and row.name not in shown]
        lines += map(_line, judged)
        shown.update(row.name for row in judged)
    return "\n".join(lines) + "\n"


def place(text: str, section: str) -> str:
    """`text` with what stands between the markers replaced by `section`."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + section + after


def main() -> None:
    """Write the three files."""
    results = ROOT / "benchmarks" / "results"
    engine, ttft = newest("engine", results), newest("ttft", results)
    readme = ROOT / "README.md"
    readme.write_text(place(readme.read_text(), render_readme(engine, ttft)))
    measured = render_measured(judged_files(results))
    (ROOT / "docs/reference/measured.md").write_text(measured)
    report = read_report(engine)
    titles = {each["name"]: each["title"] for each in report.details["workloads"]}
    draw_summaries(ROOT / "docs/engine.png", titles[PLOTTED], summaries(report, PLOTTED))


FIRST_TOKENS = {
    "cold": "cold",
    "device": "device hit",
    "ram": "RAM hit",
    "disk": "disk hit, engine restarted",
    "shared": "shared hit, new engine",
}


def _table(rows: list[tuple[str, RunSummary]]) -> Iterator[str]:
    yield "| | " + " | ".join(HEADINGS) + " |"
    yield "|---" * (len(HEADINGS) + 1) + "|"
    for title, summary in rows:
        cells = summary_cells(summary, None if title == rows[0][0] else rows[0][1])
        yield f"| {title} | " + " | ".join(cell.replace("\n", " ") for cell in cells) + " |"


def _first_tokens(report: Report) -> Iterator[str]:
    found = {row.name: row for row in report.rows}
    states = {
        state: title for state, title in FIRST_TOKENS.items() if f"ttft/1700/{state}" in found
    }
    yield f"| Time to first token | {' | '.join(states.values())} |"
    yield "|---" * (len(states) + 1) + "|"
    for tokens in (1700, 5300):
        values = [f"{found[f'ttft/{tokens}/{state}'].value:.3f} s" for state in states]
        yield f"| {tokens:,} tokens | " + " | ".join(values) + " |"


def _origin(report: Report, path: Path) -> str:
    machine = report.machine
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.ram_bytes >> 30} GiB, kernel "
        f"{machine.kernel}, Python {machine.python}, commit {report.commit[:10]}, "
        f"{report.measured_at[:10]}: `{path.relative_to(ROOT)}`"
    )


def _line(row: Row) -> str:
    verdict = "met" if row.met else "**missed**"
    ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
    return (
        f"| {verdict} | {row.name} | {row.value:.4g} {row.unit} | {ratio} | {row.target} | "
        f"{row.note} |"
    )


if __name__ == "__main__":
    main()
