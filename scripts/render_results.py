"""Write what was measured: the README's table and picture, and docs/reference/measured.md.

Every number comes from the newest file of its kind in benchmarks/results (`engine-*.json`,
`ttft-*.json`, ...); a test fails while the committed text differs from what this script writes.
Run it as `PYTHONPATH=benchmarks python scripts/render_results.py`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from kvtier_bench.lineup import lineup
from kvtier_bench.plot import draw_ttft
from kvtier_bench.rows import BenchmarkReport, Row, read_report
from kvtier_bench.runs import RunSummary, median_summary
from kvtier_bench.table import HEADINGS, summary_cells

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: written by scripts/render_results.py -->", "<!-- end of results -->"
PLOTTED = "high-1.7"
KINDS = (
    "micro",
    "storage-peers",
    "evict",
    "ttft",
    "engine",
    "forked",
    "router",
    "router-engines",
)
"""Kinds of results whose rows have targets, in the order shown. Routers in front of real engines
take so long to measure that they have files of their own."""


LIMITS = (
    ("RAM, write", "RAM put, 1 MiB, batches of 32, share of numpy.copyto", "memcpy"),
    ("RAM, read", "RAM get, 1 MiB, batches of 32, share of numpy.copyto", "memcpy"),
    ("disk, write", "disk write, 1 MiB, share of a raw slab", "O_DIRECT on one file"),
    ("disk, read", "disk read, 1 MiB, share of a raw slab", "O_DIRECT on one file"),
    ("shared folder, write", "shared write, 1 MiB blocks, share of raw files", "O_DIRECT on files"),
    ("shared folder, read", "shared read, 1 MiB blocks, share of raw files", "O_DIRECT on files"),
)
"""Title, row and limit of what answers how close a tier is to the hardware."""

PEER_ROW = re.compile(
    r"shared ((?:cached )?(?:read|write)), (\S+ \S+) blocks, kvtier.* against (.*)"
)


def newest(kind: str, results: Path) -> Path:
    """Return the newest result file of a kind: the dates in the names sort."""
    return sorted(results.glob(f"{kind}-[0-9]*.json"))[-1]


def judged_files(results: Path) -> list[Path]:
    """Return the newest result file of every kind that has one."""
    return [newest(kind, results) for kind in KINDS if any(results.glob(f"{kind}-[0-9]*.json"))]


def summaries(report: BenchmarkReport, workload: str) -> list[tuple[str, RunSummary]]:
    """Return title and median run of every contestant that ran, in the order of the lineup."""
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


def render_readme(ttft: Path) -> str:
    """Return the README's section of results, markers included."""
    report = read_report(ttft)
    lines = [
        BEGIN,
        "![Time to first token of one prompt: cold, from RAM, from disk after a restart, from "
        "another engine's shared folder](docs/ttft.png)",
        "",
        *_first_tokens(report),
        "",
        f"{_origin(report, ttft)}. What it gains under load, what it costs, and every target, met "
        "or missed: [docs/reference/measured.md](docs/reference/measured.md).",
        END,
    ]
    return "\n".join(lines)


def render_measured(results: Path) -> str:
    """Return docs/reference/measured.md: answers first, then every row that has a target."""
    lines = [
        "# Measurements",
        "",
        "<!-- Written by scripts/render_results.py; do not edit. -->",
        "",
        "Each answer names its numbers; the rows behind them, met or missed, follow below. The "
        "machines have two cores and no GPU, so compare ratios, not seconds.",
        "",
        *_answers(results),
        "",
        "## Every row with a target",
        "",
        "The target judges the ratio to the reference where a row has one, and the value where it "
        "has none. The result files say what a row's reference is, and hold the runs behind it.",
    ]
    shown: set[str] = set()  # a row of a kind of its own also stands in older files
    for path in judged_files(results):
        report = read_report(path)
        lines += ["", f"### {path.stem}", "", _origin(report, path) + ".", ""]
        lines += ["| | row | value | ratio | target | note |", "|---|---|---|---|---|---|"]
        judged = [row for row in report.rows if row.met is not None and row.name not in shown]
        lines += map(_line, judged)
        shown.update(row.name for row in judged)
    return "\n".join(lines) + "\n"


def _answers(results: Path) -> Iterator[str]:
    """Yield the questions that people ask, with the measured answers."""
    found: dict[str, Row] = {}
    for path in judged_files(results):
        for row in read_report(path).rows:
            found.setdefault(row.name, row)  # the file of a row's own kind comes first
    engine = read_report(newest("engine", results))
    rounds = len(next(iter(engine.details["runs"][PLOTTED].values())))

    def value(name: str) -> float:
        return found[name].value

    def ratio(name: str) -> float:
        known = found[name].ratio
        assert known is not None, name
        return known

    yield "## What does a hit cost?"
    yield ""
    yield from _first_tokens(read_report(newest("ttft", results)))
    yield ""
    yield (
        f"For 5,300 tokens, a RAM hit takes {ratio('ttft/5300/ram'):.2f} times as long as a hit "
        f"on the device, a disk hit after a restart {ratio('ttft/5300/disk'):.2f} times, and a "
        f"hit in the folder of another engine {ratio('ttft/5300/shared'):.2f} times. Computing "
        f"the prompt takes {ratio('ttft/5300/cold_over_ram'):.0f} times as long as the RAM hit. "
        "The answers are the same."
    )
    yield ""
    yield "## What does it gain under load?"
    yield ""
    yield (
        f"Medians of {rounds} interleaved rounds; in brackets the change against vLLM alone. The "
        "limit is vLLM alone with a device cache that holds everything. vLLM's own tiering keeps "
        "blocks in RAM as kvtier does; kvtier differs by what it adds below RAM."
    )
    for workload in engine.details["workloads"]:
        yield from ("", f"**{workload['title']}**", "")
        yield from _table(summaries(engine, workload["name"]))
    yield ""
    yield "## What does it cost where it does not help?"
    yield ""
    yield (
        "Where everything fits the device, an engine with RAM and disk tiers uses "
        f"{ratio('low/kvtier-ram-disk/cpu_per_request_against_alone'):.3f} times the CPU a request "
        "of vLLM alone, and serves "
        f"{ratio('low/kvtier-ram-disk/tokens_per_s_against_vllm-alone'):.3f} times its tokens a "
        "second."
    )
    yield ""
    yield "## How close is it to the hardware?"
    yield ""
    yield "| blocks of 1 MiB | GB/s | share of the limit | limit |"
    yield "|---|---|---|---|"
    for title, name, limit in LIMITS:
        row = found[name]
        yield f"| {title} | {row.value:.1f} | {ratio(name):.2f} | {limit} |"
    yield ""
    yield "## How does shared storage compare with LMCache and AIBrix?"
    yield ""
    yield (
        "The same bytes on the same file system, kvtier's rate over the peer's: above 1, kvtier is "
        "faster."
    )
    yield from ("", "| blocks | operation | peer | ratio |", "|---|---|---|---|")
    for name, row in found.items():
        if (compared := PEER_ROW.fullmatch(name)) and row.ratio is not None:
            operation, blocks, peer = compared.groups()
            yield f"| {blocks} | {operation} | {peer} | {row.ratio:.2f} |"
    yield ""
    yield "## What does the router cost?"
    yield ""
    whole = "kvtier route, default profile, non-streaming: CPU a request"
    stream = "kvtier route, default profile, streaming 64 chunks: CPU a request"
    yield (
        f"`kvtier route` uses {value(whole):.0f} us of CPU for a request without a stream and "
        f"{value(stream):.0f} us for a stream of 64 chunks: {ratio(whole):.2f} and "
        f"{ratio(stream):.2f} times the Rust router "
        "vllm-router. `kvtier epp` adds "
        f"{value('p99 added by the picker at 300 requests/s'):.1f} ms to the 99th percentile at "
        "300 requests a second."
    )


def place(text: str, section: str) -> str:
    """Return `text` with everything between the markers replaced by `section`."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + section + after


def main() -> None:
    """Write the README's section, its picture, and the page of measurements."""
    results = ROOT / "benchmarks" / "results"
    ttft = newest("ttft", results)
    readme = ROOT / "README.md"
    readme.write_text(place(readme.read_text(), render_readme(ttft)))
    (ROOT / "docs/reference/measured.md").write_text(render_measured(results))
    found = {row.name: row.value for row in read_report(ttft).rows}
    draw_ttft(
        ROOT / "docs/ttft.png",
        "Time to the first token of a prompt of 5,300 tokens",
        [(title, found[f"ttft/5300/{state}"]) for state, title in FIRST_TOKENS.items()],
    )


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


def _first_tokens(report: BenchmarkReport) -> Iterator[str]:
    found = {row.name: row for row in report.rows}
    states = {
        state: title for state, title in FIRST_TOKENS.items() if f"ttft/1700/{state}" in found
    }
    yield f"| Time to first token | {' | '.join(states.values())} |"
    yield "|---" * (len(states) + 1) + "|"
    for tokens in (1700, 5300):
        values = [f"{found[f'ttft/{tokens}/{state}'].value:.3f} s" for state in states]
        yield f"| {tokens:,} tokens | " + " | ".join(values) + " |"


def _origin(report: BenchmarkReport, path: Path) -> str:
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
