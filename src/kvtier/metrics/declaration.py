"""How a metric is declared: name, kind, meaning, labels, buckets.

Why it exists: one room to see what can be observed, from which processes register and the
reference is written. Invariants: names start with `kvtier_` and end with their unit; labels
are bounded by LABEL_VALUES. Counter names carry no `_total`: Prometheus clients append it.
"""

import enum
from collections.abc import Mapping
from typing import Final

import msgspec


class MetricKind(enum.Enum):
    """Prometheus metric types in use."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(msgspec.Struct, frozen=True):
    """One declaration. `buckets` are upper bounds in the metric's unit, histograms only."""

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
"""Every value a label may take. `promote` and `demote` move between RAM and the tier named
beside them; `delete` frees space in it, `find` asks storage that others write to."""
