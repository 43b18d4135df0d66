"""The declaration of a metric: its name, kind, documentation, labels and buckets.

Processes register their metrics from these declarations, and the reference page is rendered from
them. Invariants: names start with `kvtier_` and end with their unit; LABEL_VALUES lists all values
of every label. Counter names have no `_total`, because Prometheus clients append it.
"""

import enum
from collections.abc import Mapping
from typing import Final

import msgspec


class MetricKind(enum.Enum):
    """The type of a Prometheus metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(msgspec.Struct, frozen=True):
    """A metric. `buckets` are the upper bounds of a histogram in the metric's unit."""

    name: str
    kind: MetricKind
    documentation: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] | None = None


LABEL_VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "tier": ("ram", "disk", "shared", "objectstore"),
    "direction": ("find", "promote", "demote", "delete"),
    "calls": ("read", "write"),
    "reason": ("bound", "quota", "ttl", "orphan", "broken", "unknown"),
    "drop": (
        *("rejected-saturated", "rejected-no-endpoints", "rejected-invalid"),
        *("rejected-shutting-down", "rejected-failed"),
    ),
    "counted": ("prompt", "cached", "completion"),
    "outcome": ("ok", "refused", "overloaded", "unavailable", "failed", "cancelled"),
    "replica": ("names of the fleet",),
    "source": ("names of the fleet", "addresses of evictors"),
    "scraped": ("ok", "failed"),
    "message": ("read", "bad", "repeated", "foreign"),
    "gap": ("seen", "filled", "forgotten", "restart"),
    "why": (
        *("stranger", "group", "malformed", "block_size", "tier"),
        *("unknown", "orphan", "too_long"),
    ),
}
"""The values of every label. `promote` and `demote` move blocks between RAM and the tier of the
`tier` label; `delete` frees space in that tier; `find` looks up blocks that other nodes wrote."""
