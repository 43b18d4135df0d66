from rich.console import Console

from kvtier.evictor.report import PassReport, pass_view, summary_line


def sample(**fields: object) -> PassReport:
    report = PassReport(used_bytes=5 << 30, used_inodes=7, shards_owned=17, **fields)  # type: ignore[arg-type]
    tree = report.tree("tiny-0123456789abcdef", is_foreign=False)
    tree.files, tree.size_bytes = 6, 5 << 30
    tree.freed.add(1 << 30)
    report.freed["ttl"].add(1 << 30)
    for number in range(30):
        report.note_unknown(f"odd\n[red]{number}", 1)
    return report


def rendered(report: PassReport) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(pass_view(report))
    console.file.close()
    return console.export_text()


def test_pass_view_shows_trees_reasons_and_unknown_names() -> None:
    text = rendered(sample(refused_trees={"x": "x is of format 9"}))
    for part in ("tiny-0123456789abcdef", "5.0GiB", "1.0GiB", "ttl", "not touched: x is of"):
        assert part in text
    assert r"odd\n[red]9" in text, "names are escaped and not interpreted as markup"
    assert "unknown: 20 more" in text


def test_pass_view_of_dry_run_says_what_would_be_deleted() -> None:
    assert "would free 1.0GiB" in summary_line(sample(dry_run=True))
    assert "to delete" in rendered(sample(dry_run=True))
    assert "freed 1.0GiB in 1 files" in summary_line(sample())


def test_summary_line_contains_problems() -> None:
    line = summary_line(sample(short_bytes=1 << 20, refused_calls=3))
    assert "1.0MiB too much" in line
    assert "3 calls refused" in line
    assert "30 unknown files" in line
