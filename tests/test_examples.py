"""The examples run as they stand."""

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_minimal_program_finds_its_blocks_again_after_a_restart(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "minimal.py", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "8 of 8 blocks are on disk after the restart" in done.stdout
    assert "[0, 1, 2, 3, 4, 5, 6, 7]" in done.stdout


def test_the_policy_passes_the_suite_it_is_shown_with() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", EXAMPLES / "my_policy.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_scorer_weighs_the_price_against_the_queue() -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "my_scorer.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "0 waiting at the cheap one: [3.0, 2.5], goes to cheap",
        "4 waiting at the cheap one: [1.0, 2.5], goes to dear",
    ]
