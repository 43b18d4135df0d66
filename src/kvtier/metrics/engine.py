"""The metrics of an engine's process, exposed beside vLLM's own."""

from typing import Final

from kvtier.metrics.declaration import Metric, MetricKind

_TRANSFER_BUCKETS_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

HIT_BLOCKS: Final = Metric(
    "kvtier_hit_blocks", MetricKind.COUNTER, "Blocks that were found in a tier.", ("tier",)
)
HIT_TOKENS: Final = Metric(
    "kvtier_hit_tokens",
    MetricKind.COUNTER,
    "Tokens of the blocks that were found in a tier.",
    ("tier",),
)
MISS_BLOCKS: Final = Metric(
    "kvtier_miss_blocks",
    MetricKind.COUNTER,
    "Blocks that no tier held; the engine computed them.",
)
READ_BYTES: Final = Metric(
    "kvtier_read_bytes", MetricKind.COUNTER, "Bytes of blocks read from a tier.", ("tier",)
)
WRITTEN_BYTES: Final = Metric(
    "kvtier_written_bytes", MetricKind.COUNTER, "Bytes of blocks written to a tier.", ("tier",)
)
OCCUPANCY_BLOCKS: Final = Metric(
    "kvtier_occupancy_blocks", MetricKind.GAUGE, "Blocks that a tier holds now.", ("tier",)
)
OCCUPANCY_TOKENS: Final = Metric(
    "kvtier_occupancy_tokens",
    MetricKind.GAUGE,
    "Tokens of the blocks that a tier holds now.",
    ("tier",),
)
CAPACITY_BLOCKS: Final = Metric(
    "kvtier_capacity_blocks", MetricKind.GAUGE, "Number of blocks that fit in a tier.", ("tier",)
)
CAPACITY_TOKENS: Final = Metric(
    "kvtier_capacity_tokens", MetricKind.GAUGE, "Number of tokens that fit in a tier.", ("tier",)
)
TRANSFER_SECONDS: Final = Metric(
    "kvtier_transfer_seconds",
    MetricKind.HISTOGRAM,
    "Time that a thread spent on one part of a transfer in a tier.",
    ("tier", "direction"),
    _TRANSFER_BUCKETS_S,
)
TRANSFER_QUEUE_BLOCKS: Final = Metric(
    "kvtier_transfer_queue_blocks",
    MetricKind.GAUGE,
    "Blocks that wait for a transfer.",
    ("tier", "direction"),
)
EVICTED_BLOCKS: Final = Metric(
    "kvtier_evicted_blocks",
    MetricKind.COUNTER,
    "Blocks that were evicted to make room for others.",
    ("tier",),
)
REJECTED_BLOCKS: Final = Metric(
    "kvtier_rejected_blocks",
    MetricKind.COUNTER,
    "Blocks that the admission policy did not let into a tier.",
    ("tier",),
)
DROPPED_BLOCKS: Final = Metric(
    "kvtier_dropped_blocks",
    MetricKind.COUNTER,
    "Blocks that were not stored in a tier because of back-pressure, such as a full queue. The "
    "engine never waits for writes.",
    ("tier",),
)
CORRUPT_BLOCKS: Final = Metric(
    "kvtier_corrupt_blocks",
    MetricKind.COUNTER,
    "Blocks whose bytes failed verification. They were treated as misses.",
    ("tier",),
)
MISSING_BLOCKS: Final = Metric(
    "kvtier_missing_blocks",
    MetricKind.COUNTER,
    "Blocks that were found in a tier's index but not in the tier. They were treated as misses.",
    ("tier",),
)
FAULT_BLOCKS: Final = Metric(
    "kvtier_fault_blocks",
    MetricKind.COUNTER,
    "Blocks that a tier could not read or write (I/O error, full, no permission).",
    ("tier",),
)
PROMOTE_EXPIRED_REQUESTS: Final = Metric(
    "kvtier_promote_expired_requests",
    MetricKind.COUNTER,
    "Requests that stopped waiting for a lower tier at `transfer.promote_deadline`. The "
    "missing blocks were computed.",
)

BREAKER_STATE: Final = Metric(
    "kvtier_breaker_state",
    MetricKind.GAUGE,
    "State of a tier's circuit breaker: 0 closed (calls pass), 1 half-open (one call at a "
    "time tries), 2 open (no call passes, and all lookups are misses).",
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
"""The metrics of an engine's process, in the order of the reference."""
