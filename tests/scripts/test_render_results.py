"""What the README says was measured is what the result files say."""

import pytest

from scripts.render_results import (
    BEGIN,
    END,
    KINDS,
    ROOT,
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
    page = render_measured([newest(kind, RESULTS) for kind in KINDS])
    assert (ROOT / "docs/reference/measured.md").read_text() == page


@pytest.mark.parametrize("kind", KINDS)
def test_no_result_file_names_a_path_of_a_machine(kind: str) -> None:
    for path in RESULTS.glob(f"{kind}-*.json"):
        assert str(ROOT.parent) + "/" not in path.read_text()


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert place(text, f"{BEGIN}\nnew\n{END}") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
