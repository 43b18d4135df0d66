"""The examples run unchanged."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
PLUGINS = ["my_policy.py", "my_tier.py", "my_scorer.py"]


def test_minimal_example_loads_its_blocks_after_restart(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "minimal.py", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "8 of 8 blocks are on disk after the restart" in done.stdout
    assert "[0, 1, 2, 3, 4, 5, 6, 7]" in done.stdout


@pytest.mark.parametrize("name", PLUGINS)
def test_plugin_example_passes_the_contract_suite(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES / name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_page_for_authors_of_plugins_includes_the_examples() -> None:
    page = (EXAMPLES.parent / "docs" / "develop" / "extend.md").read_text()
    for name in PLUGINS:
        assert f'\n--8<-- "examples/{name}"\n' in page


def test_scorer_example_weighs_price_against_queue() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "my_scorer.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "0 waiting at the cheap replica: [3.0, 2.5], sent to cheap",
        "4 waiting at the cheap replica: [1.0, 2.5], sent to expensive",
    ]
