"""Declarations of the metrics of `kvtier evict`."""

from typing import Final

from kvtier.metrics.declaration import Metric, MetricKind

EVICT_USED_BYTES: Final = Metric(
    "kvtier_evict_used_bytes",
    MetricKind.GAUGE,
    "Bytes on the device that count against `--high`, after the last pass.",
)
EVICT_USED_INODES: Final = Metric(
    "kvtier_evict_used_inodes",
    MetricKind.GAUGE,
    "Files and folders of the store, after the last pass.",
)
EVICT_SHORT_BYTES: Final = Metric(
    "kvtier_evict_short_bytes",
    MetricKind.GAUGE,
    "Bytes that the last pass should have freed and did not, because the files were used within "
    "the grace period or could not be removed.",
)
EVICT_FREED_BYTES: Final = Metric(
    "kvtier_evict_freed_bytes",
    MetricKind.COUNTER,
    "Bytes on the device that were freed, by reason.",
    ("reason",),
)
EVICT_FREED_FILES: Final = Metric(
    "kvtier_evict_freed_files",
    MetricKind.COUNTER,
    "Files that were removed or moved to quarantine, by reason.",
    ("reason",),
)
EVICT_SCANNED_FILES: Final = Metric(
    "kvtier_evict_scanned_files", MetricKind.COUNTER, "Files that were scanned."
)
EVICT_UNKNOWN_FILES: Final = Metric(
    "kvtier_evict_unknown_files",
    MetricKind.GAUGE,
    "Files of no known layout that the last pass found.",
)
EVICT_BROKEN_FILES: Final = Metric(
    "kvtier_evict_broken_files",
    MetricKind.COUNTER,
    "Segments that were found to have an invalid header.",
)
EVICT_OWNED_SHARDS: Final = Metric(
    "kvtier_evict_owned_shards",
    MetricKind.GAUGE,
    "Shards whose lease this evictor holds, out of 17.",
)
EVICT_FENCED_SHARDS: Final = Metric(
    "kvtier_evict_fenced_shards", MetricKind.COUNTER, "Leases that another evictor took over."
)
EVICT_REFUSED_CALLS: Final = Metric(
    "kvtier_evict_refused_calls", MetricKind.COUNTER, "Calls to the store that failed."
)
EVICT_PASS_SECONDS: Final = Metric(
    "kvtier_evict_pass_seconds", MetricKind.GAUGE, "Duration of the last pass."
)
EVICT_PASS_AGE_SECONDS: Final = Metric(
    "kvtier_evict_pass_age_seconds",
    MetricKind.GAUGE,
    "Time since the end of the last pass, or since the evictor's start. It grows while the store "
    "does not answer.",
)
EVICT_ANNOUNCED_BLOCKS: Final = Metric(
    "kvtier_evict_announced_blocks",
    MetricKind.COUNTER,
    "Removed blocks that were announced in events.",
)
EVICT_UNREAD_FILES: Final = Metric(
    "kvtier_evict_unread_files",
    MetricKind.COUNTER,
    "Removed files whose header could not be read, so that events announced only their first "
    "block.",
)
EVICT_SLOW_SUBSCRIBERS: Final = Metric(
    "kvtier_evict_slow_subscribers",
    MetricKind.COUNTER,
    "Times that a subscriber of events fell behind and began to lose messages.",
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
"""The metrics that `kvtier evict --metrics-port` exposes."""
