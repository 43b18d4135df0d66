"""What an engine exposes, beside its own metrics."""

from typing import Final

from kvtier.metrics.declaration import Metric, MetricKind

_TRANSFER_BUCKETS_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

HIT_BLOCKS: Final = Metric(
    "kvtier_hit_blocks", MetricKind.COUNTER, "Blocks found, by the tier that held them.", ("tier",)
)
HIT_TOKENS: Final = Metric(
    "kvtier_hit_tokens", MetricKind.COUNTER, "Tokens of the blocks found, by tier.", ("tier",)
)
MISS_BLOCKS: Final = Metric(
    "kvtier_miss_blocks",
    MetricKind.COUNTER,
    "Blocks the engine computed because no tier held them.",
)
READ_BYTES: Final = Metric(
    "kvtier_read_bytes", MetricKind.COUNTER, "Payload bytes read from a tier.", ("tier",)
)
WRITTEN_BYTES: Final = Metric(
    "kvtier_written_bytes", MetricKind.COUNTER, "Payload bytes written to a tier.", ("tier",)
)
OCCUPANCY_BLOCKS: Final = Metric(
    "kvtier_occupancy_blocks", MetricKind.GAUGE, "Blocks a tier holds now.", ("tier",)
)
OCCUPANCY_TOKENS: Final = Metric(
    "kvtier_occupancy_tokens", MetricKind.GAUGE, "Tokens of the blocks a tier holds now.", ("tier",)
)
CAPACITY_BLOCKS: Final = Metric(
    "kvtier_capacity_blocks", MetricKind.GAUGE, "Blocks a tier can hold.", ("tier",)
)
CAPACITY_TOKENS: Final = Metric(
    "kvtier_capacity_tokens", MetricKind.GAUGE, "Tokens a tier can hold.", ("tier",)
)
TRANSFER_SECONDS: Final = Metric(
    "kvtier_transfer_seconds",
    MetricKind.HISTOGRAM,
    "Time a thread spent on one part of a transfer, in the tier.",
    ("tier", "direction"),
    _TRANSFER_BUCKETS_S,
)
TRANSFER_QUEUE_BLOCKS: Final = Metric(
    "kvtier_transfer_queue_blocks",
    MetricKind.GAUGE,
    "Blocks waiting to be transferred.",
    ("tier", "direction"),
)
EVICTED_BLOCKS: Final = Metric(
    "kvtier_evicted_blocks", MetricKind.COUNTER, "Blocks evicted to make room.", ("tier",)
)
REJECTED_BLOCKS: Final = Metric(
    "kvtier_rejected_blocks", MetricKind.COUNTER, "Blocks the admission policy kept out.", ("tier",)
)
DROPPED_BLOCKS: Final = Metric(
    "kvtier_dropped_blocks",
    MetricKind.COUNTER,
    "Blocks not kept because of back-pressure: the cache sheds writes, the engine never waits.",
    ("tier",),
)
CORRUPT_BLOCKS: Final = Metric(
    "kvtier_corrupt_blocks",
    MetricKind.COUNTER,
    "Blocks whose bytes failed verification; they were served as a miss.",
    ("tier",),
)
MISSING_BLOCKS: Final = Metric(
    "kvtier_missing_blocks",
    MetricKind.COUNTER,
    "Blocks a tier was believed to hold and did not have; they were served as a miss.",
    ("tier",),
)
FAULT_BLOCKS: Final = Metric(
    "kvtier_fault_blocks",
    MetricKind.COUNTER,
    "Blocks a tier failed to read or write (EIO, full, permission lost).",
    ("tier",),
)
PROMOTE_EXPIRED_REQUESTS: Final = Metric(
    "kvtier_promote_expired_requests",
    MetricKind.COUNTER,
    "Requests that stopped waiting for a lower tier at `transfer.promote_deadline`; what had "
    "not arrived was computed.",
)

BREAKER_STATE: Final = Metric(
    "kvtier_breaker_state",
    MetricKind.GAUGE,
    "Whether calls to a tier pass: 0 closed (they do), 1 half-open (one tries), 2 open (none "
    "does, everything there is a miss at once).",
    ("tier", "calls"),
)

METRICS: Final[tuple[Metric, ...]] = (
    HIT_BLOCKS,
    HIT_TOKENS,
    MISS_BLOCKS,
    READ_BYTES,
    WRITTEN_BYTES,
    OCCUPANCY_BLOCKS,
    OCCUPANCY_TOKENS,
    CAPACITY_BLOCKS,
    CAPACITY_TOKENS,
    TRANSFER_SECONDS,
    TRANSFER_QUEUE_BLOCKS,
    EVICTED_BLOCKS,
    REJECTED_BLOCKS,
    DROPPED_BLOCKS,
    CORRUPT_BLOCKS,
    MISSING_BLOCKS,
    FAULT_BLOCKS,
    PROMOTE_EXPIRED_REQUESTS,
    BREAKER_STATE,
)
"""What an engine's process exposes, in the order of the reference."""
