"""What the README says was measured is what the result files say."""

from pathlib import Path

import pytest

from scripts.render_results import (
    BEGIN,
    END,
    KINDS,
    ROOT,
    judged_files,
    newest,
    place,
    render_measured,
    render_readme,
)

RESULTS = ROOT / "benchmarks" / "results"


def test_the_readme_says_what_the_newest_result_file_says() -> None:
    text = (ROOT / "README.md").read_text()
    assert render_readme(newest("engine", RESULTS), newest("ttft", RESULTS)) in text


def test_the_page_of_targets_is_fresh_and_keeps_misses() -> None:
    page = render_measured(judged_files(RESULTS))
    assert (ROOT / "docs/reference/measured.md").read_text() == page


@pytest.mark.parametrize("kind", KINDS)
def test_no_result_file_names_a_path_of_a_machine(kind: str) -> None:
    for path in RESULTS.glob(f"{kind}-*.json"):
        assert str(ROOT.parent) + "/" not in path.read_text()


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert place(text, f"{BEGIN}\nnew\n{END}") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"


def test_a_kind_with_a_longer_name_is_another_kind(tmp_path: Path) -> None:
    for name in ("router-2026-11-22", "router-2026-11-23", "router-engines-2026-11-22"):
        (tmp_path / f"{name}.json").touch()
    assert [path.stem for path in judged_files(tmp_path)] == [
        "router-2026-11-23",
        "router-engines-2026-11-22",
    ]
