"""Renders the reference page of all metrics, `docs/reference/metrics.md`."""

from kvtier.metrics import engine, evictor, router
from kvtier.metrics.declaration import LABEL_VALUES, Metric


def _table(metrics: tuple[Metric, ...]) -> list[str]:
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        cells = (f"`{metric.name}`", metric.kind.value, labels, metric.documentation)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def render_markdown() -> str:
    """Return the text of the page."""
    lines = [
        "# Metrics",
        "",
        "Generated from `kvtier.metrics`; do not edit. Counters are exposed with `_total` after",
        "the name, histograms as `_bucket`, `_sum` and `_count`.",
        "",
        "## Engines",
        "",
        "vLLM exposes these on its own `/metrics`, with its own labels added.",
        "",
        *_table(engine.METRICS),
        "",
        "## `kvtier evict --metrics-port`",
        "",
        *_table(evictor.EVICTOR_METRICS),
        "",
        "## `kvtier epp --metrics-port`",
        "",
        *_table(router.EPP_METRICS),
        "",
        "## `kvtier route`",
        "",
        *_table(router.ROUTE_METRICS),
        "",
        "## What `kvtier route` and `kvtier epp` learn about replicas",
        "",
        "Both expose these metrics.",
        "",
        *_table(router.ROUTER_METRICS),
    ]
    lines += ["", "## Labels", "", "| label | values |", "|---|---|"]
    for label, values in LABEL_VALUES.items():
        lines.append(f"| `{label}` | {', '.join(f'`{value}`' for value in values)} |")
    return "\n".join(lines) + "\n"
