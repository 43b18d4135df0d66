"""The README and the page of measurements say what the result files say."""

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


def test_readme_shows_the_newest_result_file() -> None:
    text = (ROOT / "README.md").read_text()
    assert render_readme(newest("ttft", RESULTS)) in text


def test_page_of_measurements_is_current_and_keeps_missed_targets() -> None:
    page = render_measured(RESULTS)
    assert (ROOT / "docs/reference/measured.md").read_text() == page
    assert "| **missed** |" in page


@pytest.mark.parametrize("kind", KINDS)
def test_result_files_name_no_path_of_a_machine(kind: str) -> None:
    for path in RESULTS.glob(f"{kind}-*.json"):
        assert str(ROOT.parent) + "/" not in path.read_text()


def test_place_replaces_only_what_is_between_the_markers() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert place(text, f"{BEGIN}\nnew\n{END}") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"


def test_judged_files_keep_kinds_with_a_common_prefix_apart(tmp_path: Path) -> None:
    for name in ("router-2026-11-22", "router-2026-11-23", "router-engines-2026-11-22"):
        (tmp_path / f"{name}.json").touch()
    assert [path.stem for path in judged_files(tmp_path)] == [
        "router-2026-11-23",
        "router-engines-2026-11-22",
    ]
