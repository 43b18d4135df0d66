"""Write the documents that are generated from code: settings, command line, metrics.

`make check` fails while a committed file differs from what this script writes.
Run it as `python scripts/render_reference.py`.
"""

import sys
from pathlib import Path

from kvtier.cli import reference as cli_reference
from kvtier.metrics import reference as metrics_reference
from kvtier.settings import reference as settings_reference

GENERATED = {
    "docs/reference/settings.md": settings_reference.render_markdown,
    "docs/reference/cli.md": cli_reference.render_markdown,
    "docs/reference/metrics.md": metrics_reference.render_markdown,
    "examples/every_option.yaml": settings_reference.render_yaml,
}
"""Path from the repository's root to the function that returns the file's text."""


def main() -> int:
    """Write every file that differs; with `--check`, name them and return 1 instead."""
    root = Path(__file__).resolve().parent.parent
    stale = [path for path, render in GENERATED.items() if _text(root / path) != render()]
    if sys.argv[1:] == ["--check"]:
        for path in stale:
            print(f"{path} is stale: run `python scripts/render_reference.py`", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(GENERATED[path](), encoding="utf-8")
        print(f"wrote {path}")
    return 0


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
