"""What `kvtier evict` exposes."""

from typing import Final

from kvtier.metrics.declaration import Metric, MetricKind

EVICT_USED_BYTES: Final = Metric(
    "kvtier_evict_used_bytes",
    MetricKind.GAUGE,
    "Physical bytes held against the high watermark, after the last pass.",
)
EVICT_USED_INODES: Final = Metric(
    "kvtier_evict_used_inodes",
    MetricKind.GAUGE,
    "Files and folders of the store, after the last pass.",
)
EVICT_SHORT_BYTES: Final = Metric(
    "kvtier_evict_short_bytes",
    MetricKind.GAUGE,
    "Bytes that had to go and are still there: in use a moment ago, or not to be removed.",
)
EVICT_FREED_BYTES: Final = Metric(
    "kvtier_evict_freed_bytes", MetricKind.COUNTER, "Physical bytes freed.", ("reason",)
)
EVICT_FREED_FILES: Final = Metric(
    "kvtier_evict_freed_files", MetricKind.COUNTER, "Files removed or moved aside.", ("reason",)
)
EVICT_SCANNED_FILES: Final = Metric(
    "kvtier_evict_scanned_files", MetricKind.COUNTER, "Files looked at."
)
EVICT_UNKNOWN_FILES: Final = Metric(
    "kvtier_evict_unknown_files", MetricKind.GAUGE, "Files of no known layout in the last pass."
)
EVICT_BROKEN_FILES: Final = Metric(
    "kvtier_evict_broken_files", MetricKind.COUNTER, "Segments whose header failed."
)
EVICT_OWNED_SHARDS: Final = Metric(
    "kvtier_evict_owned_shards", MetricKind.GAUGE, "Leases held, of seventeen."
)
EVICT_FENCED_SHARDS: Final = Metric(
    "kvtier_evict_fenced_shards", MetricKind.COUNTER, "Leases lost to another evictor."
)
EVICT_REFUSED_CALLS: Final = Metric(
    "kvtier_evict_refused_calls", MetricKind.COUNTER, "Calls that the store refused."
)
EVICT_PASS_SECONDS: Final = Metric(
    "kvtier_evict_pass_seconds", MetricKind.GAUGE, "Time that the last pass took."
)
EVICT_PASS_AGE_SECONDS: Final = Metric(
    "kvtier_evict_pass_age_seconds",
    MetricKind.GAUGE,
    "Time since the last pass ended, or since the start. It grows while a store does not answer.",
)
EVICT_ANNOUNCED_BLOCKS: Final = Metric(
    "kvtier_evict_announced_blocks", MetricKind.COUNTER, "Removed blocks told in events."
)
EVICT_UNREAD_FILES: Final = Metric(
    "kvtier_evict_unread_files",
    MetricKind.COUNTER,
    "Files whose header could not be read: only their first block was told in events.",
)
EVICT_SLOW_SUBSCRIBERS: Final = Metric(
    "kvtier_evict_slow_subscribers",
    MetricKind.COUNTER,
    "Times that a subscriber of events had fallen behind and began to lose messages.",
)

EVICTOR_METRICS: Final[tuple[Metric, ...]] = (
    EVICT_USED_BYTES,
    EVICT_USED_INODES,
    EVICT_SHORT_BYTES,
    EVICT_FREED_BYTES,
    EVICT_FREED_FILES,
    EVICT_SCANNED_FILES,
    EVICT_UNKNOWN_FILES,
    EVICT_BROKEN_FILES,
    EVICT_OWNED_SHARDS,
    EVICT_FENCED_SHARDS,
    EVICT_REFUSED_CALLS,
    EVICT_PASS_SECONDS,
    EVICT_PASS_AGE_SECONDS,
    EVICT_ANNOUNCED_BLOCKS,
    EVICT_UNREAD_FILES,
    EVICT_SLOW_SUBSCRIBERS,
)
"""What `kvtier evict --metrics-port` exposes."""
