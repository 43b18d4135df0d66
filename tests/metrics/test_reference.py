from pathlib import Path

from kvtier.metrics import reference
from tests.metrics.test_declaration import ALL

ROOT = Path(__file__).parents[2]


def test_reference_is_fresh() -> None:
    text = (ROOT / "docs/reference/metrics.md").read_text()
    assert text == reference.render_markdown(), "run python scripts/render_reference.py"
    assert all(metric.name in text for metric in ALL)
