"""The options that several commands of `python -m kvtier_bench` share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

MODEL = Path(".models/smollm2-135m")
WORKLOADS = Path("benchmarks/workloads")
PEERS = Path("benchmarks/peers")
PROFILES = Path("examples/router")
SCRATCH = Path("build/bench")
DEMO = Path(".kvtier-demo")

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)

Option = Callable[[Any], Any]


def json_option(help_text: str = "Also write the rows to this report file.") -> Option:
    """Return the option that names the report file."""
    return click.option("--json", "json_path", type=FILE, help=help_text)


def scratch_option(help_text: str) -> Option:
    """Return the option that names the folder for temporary files and logs."""
    return click.option(
        "--scratch", type=FOLDER, default=SCRATCH, show_default=True, help=help_text
    )


def model_option(help_text: str = "Folder of the model that vLLM serves.") -> Option:
    """Return the option that names the model folder."""
    return click.option("--model", type=FOLDER, default=MODEL, show_default=True, help=help_text)


def seed_option(help_text: str) -> Option:
    """Return the option for the seed of everything that is drawn at random."""
    return click.option("--seed", type=int, default=1, show_default=True, help=help_text)


def count_option(flag: str, default: int, help_text: str, minimum: int = 1) -> Option:
    """Return an option that takes a number of things, `minimum` or more."""
    return click.option(
        flag,
        type=click.IntRange(min=minimum),
        default=default,
        show_default=True,
        help=help_text,
    )


def example(*lines: str) -> str:
    """Return the epilog of a help page that shows command lines."""
    heading = "Example:" if len(lines) == 1 else "Examples:"
    return "\n".join(["\b", heading, *(f"  python -m kvtier_bench {line}" for line in lines)])


def workloads_option() -> Option:
    """Return the option that names the folder of the workload files."""
    return click.option(
        "--workloads",
        type=FOLDER,
        default=WORKLOADS,
        show_default=True,
        help="Folder of the workload files.",
    )
