"""Write what is generated from declarations: docs/reference/ and examples/every_option.yaml.

A test fails while a committed file differs from what this writes.
Run it as `python scripts/render_reference.py` from the repository's root.
"""

from pathlib import Path

from kvtier.metrics import reference as metrics_reference
from kvtier.settings import reference as settings_reference

GENERATED = {
    "docs/reference/settings.md": settings_reference.render_markdown,
    "docs/reference/metrics.md": metrics_reference.render_markdown,
    "examples/every_option.yaml": settings_reference.render_yaml,
}
"""Path from the repository's root -> what writes its text."""


def main() -> None:
    """Write every file that differs."""
    root = Path(__file__).resolve().parent.parent
    for path, render in GENERATED.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != render():
            target.write_text(render())
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
