"""Every metric kvtier has, as data: name, kind, meaning, labels, buckets.

Why it exists: one place to see what can be observed, from which connectors register and the
reference is written. Invariants: names start with `kvtier_` and end with their unit; labels
are bounded by LABEL_VALUES. Counter names carry no `_total`: Prometheus clients append it.
"""

import enum
from collections.abc import Mapping
from typing import Final

import msgspec


class Kind(enum.Enum):
    """Prometheus metric types in use."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Metric(msgspec.Struct, frozen=True):
    """One declaration. `buckets` are upper bounds in the metric's unit, histograms only."""

    name: str
    kind: Kind
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

_TRANSFER_BUCKETS_S = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

HIT_BLOCKS: Final = Metric(
    "kvtier_hit_blocks", Kind.COUNTER, "Blocks found, by the tier that held them.", ("tier",)
)
HIT_TOKENS: Final = Metric(
    "kvtier_hit_tokens", Kind.COUNTER, "Tokens of the blocks found, by tier.", ("tier",)
)
MISS_BLOCKS: Final = Metric(
    "kvtier_miss_blocks", Kind.COUNTER, "Blocks the engine computed because no tier held them."
)
READ_BYTES: Final = Metric(
    "kvtier_read_bytes", Kind.COUNTER, "Payload bytes read from a tier.", ("tier",)
)
WRITTEN_BYTES: Final = Metric(
    "kvtier_written_bytes", Kind.COUNTER, "Payload bytes written to a tier.", ("tier",)
)
OCCUPANCY_BLOCKS: Final = Metric(
    "kvtier_occupancy_blocks", Kind.GAUGE, "Blocks a tier holds now.", ("tier",)
)
OCCUPANCY_TOKENS: Final = Metric(
    "kvtier_occupancy_tokens", Kind.GAUGE, "Tokens of the blocks a tier holds now.", ("tier",)
)
CAPACITY_BLOCKS: Final = Metric(
    "kvtier_capacity_blocks", Kind.GAUGE, "Blocks a tier can hold.", ("tier",)
)
CAPACITY_TOKENS: Final = Metric(
    "kvtier_capacity_tokens", Kind.GAUGE, "Tokens a tier can hold.", ("tier",)
)
TRANSFER_SECONDS: Final = Metric(
    "kvtier_transfer_seconds",
    Kind.HISTOGRAM,
    "Time a thread spent on one part of a transfer, in the tier.",
    ("tier", "direction"),
    _TRANSFER_BUCKETS_S,
)
TRANSFER_QUEUE_BLOCKS: Final = Metric(
    "kvtier_transfer_queue_blocks",
    Kind.GAUGE,
    "Blocks waiting to be transferred.",
    ("tier", "direction"),
)
EVICTED_BLOCKS: Final = Metric(
    "kvtier_evicted_blocks", Kind.COUNTER, "Blocks evicted to make room.", ("tier",)
)
REJECTED_BLOCKS: Final = Metric(
    "kvtier_rejected_blocks", Kind.COUNTER, "Blocks the admission policy kept out.", ("tier",)
)
DROPPED_BLOCKS: Final = Metric(
    "kvtier_dropped_blocks",
    Kind.COUNTER,
    "Blocks not kept because of back-pressure: the cache sheds writes, the engine never waits.",
    ("tier",),
)
CORRUPT_BLOCKS: Final = Metric(
    "kvtier_corrupt_blocks",
    Kind.COUNTER,
    "Blocks whose bytes failed verification; they were served as a miss.",
    ("tier",),
)
MISSING_BLOCKS: Final = Metric(
    "kvtier_missing_blocks",
    Kind.COUNTER,
    "Blocks a tier was believed to hold and did not have; they were served as a miss.",
    ("tier",),
)
FAULT_BLOCKS: Final = Metric(
    "kvtier_fault_blocks",
    Kind.COUNTER,
    "Blocks a tier failed to read or write (EIO, full, permission lost).",
    ("tier",),
)
PROMOTE_EXPIRED_REQUESTS: Final = Metric(
    "kvtier_promote_expired_requests",
    Kind.COUNTER,
    "Requests that stopped waiting for a lower tier at `transfer.promote_deadline`; what had "
    "not arrived was computed.",
)

BREAKER_STATE: Final = Metric(
    "kvtier_breaker_state",
    Kind.GAUGE,
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

EVICT_USED_BYTES: Final = Metric(
    "kvtier_evict_used_bytes",
    Kind.GAUGE,
    "Physical bytes held against the high watermark, after the last pass.",
)
EVICT_USED_INODES: Final = Metric(
    "kvtier_evict_used_inodes", Kind.GAUGE, "Files and folders of the store, after the last pass."
)
EVICT_SHORT_BYTES: Final = Metric(
    "kvtier_evict_short_bytes",
    Kind.GAUGE,
    "Bytes that had to go and are still there: in use a moment ago, or not to be removed.",
)
EVICT_FREED_BYTES: Final = Metric(
    "kvtier_evict_freed_bytes", Kind.COUNTER, "Physical bytes freed.", ("reason",)
)
EVICT_FREED_FILES: Final = Metric(
    "kvtier_evict_freed_files", Kind.COUNTER, "Files removed or moved aside.", ("reason",)
)
EVICT_SCANNED_FILES: Final = Metric("kvtier_evict_scanned_files", Kind.COUNTER, "Files looked at.")
EVICT_UNKNOWN_FILES: Final = Metric(
    "kvtier_evict_unknown_files", Kind.GAUGE, "Files of no known layout in the last pass."
)
EVICT_BROKEN_FILES: Final = Metric(
    "kvtier_evict_broken_files", Kind.COUNTER, "Segments whose header failed."
)
EVICT_OWNED_SHARDS: Final = Metric(
    "kvtier_evict_owned_shards", Kind.GAUGE, "Leases held, of seventeen."
)
EVICT_FENCED_SHARDS: Final = Metric(
    "kvtier_evict_fenced_shards", Kind.COUNTER, "Leases lost to another evictor."
)
EVICT_REFUSED_CALLS: Final = Metric(
    "kvtier_evict_refused_calls", Kind.COUNTER, "Calls that the store refused."
)
EVICT_PASS_SECONDS: Final = Metric(
    "kvtier_evict_pass_seconds", Kind.GAUGE, "Time that the last pass took."
)
EVICT_PASS_AGE_SECONDS: Final = Metric(
    "kvtier_evict_pass_age_seconds",
    Kind.GAUGE,
    "Time since the last pass ended, or since the start. It grows while a store does not answer.",
)
EVICT_ANNOUNCED_BLOCKS: Final = Metric(
    "kvtier_evict_announced_blocks", Kind.COUNTER, "Removed blocks told in events."
)
EVICT_UNREAD_FILES: Final = Metric(
    "kvtier_evict_unread_files",
    Kind.COUNTER,
    "Files whose header could not be read: only their first block was told in events.",
)
EVICT_SLOW_SUBSCRIBERS: Final = Metric(
    "kvtier_evict_slow_subscribers",
    Kind.COUNTER,
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

_REQUEST_BUCKETS_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)

ROUTE_REQUESTS: Final = Metric(
    "kvtier_route_requests", Kind.COUNTER, "Requests, by how they ended.", ("outcome",)
)
ROUTE_SENT_REQUESTS: Final = Metric(
    "kvtier_route_sent_requests", Kind.COUNTER, "Sent to a replica, also again.", ("replica",)
)
ROUTE_RETRIED_REQUESTS: Final = Metric(
    "kvtier_route_retried_requests",
    Kind.COUNTER,
    "Times that a replica could not be reached, or did not answer, before the client saw a byte.",
)
ROUTE_QUEUED_REQUESTS: Final = Metric(
    "kvtier_route_queued_requests", Kind.GAUGE, "Requests that wait for a replica with room."
)
ROUTE_IN_FLIGHT_REQUESTS: Final = Metric(
    "kvtier_route_in_flight_requests", Kind.GAUGE, "Sent and not ended.", ("replica",)
)
ROUTE_REPLICA_STATE: Final = Metric(
    "kvtier_route_replica_state",
    Kind.GAUGE,
    "Whether a replica gets requests: 0 it does, 1 not, since requests could not be delivered, "
    "2 not, since it is not healthy.",
    ("replica",),
)
ROUTE_CHOOSING_SECONDS: Final = Metric(
    "kvtier_route_choosing_seconds",
    Kind.HISTOGRAM,
    "Time to choose a replica.",
    (),
    (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
)
ROUTE_FIRST_BYTE_SECONDS: Final = Metric(
    "kvtier_route_first_byte_seconds",
    Kind.HISTOGRAM,
    "From a request's headers to the first bytes of its answer's body.",
    (),
    _REQUEST_BUCKETS_S,
)
ROUTE_REQUEST_SECONDS: Final = Metric(
    "kvtier_route_request_seconds",
    Kind.HISTOGRAM,
    "From a request's headers to the end of its answer.",
    (),
    _REQUEST_BUCKETS_S,
)

ROUTE_METRICS: Final[tuple[Metric, ...]] = (
    ROUTE_REQUESTS,
    ROUTE_SENT_REQUESTS,
    ROUTE_RETRIED_REQUESTS,
    ROUTE_QUEUED_REQUESTS,
    ROUTE_IN_FLIGHT_REQUESTS,
    ROUTE_REPLICA_STATE,
    ROUTE_CHOOSING_SECONDS,
    ROUTE_FIRST_BYTE_SECONDS,
    ROUTE_REQUEST_SECONDS,
)
"""What `kvtier route` exposes of its data path on its own `/metrics`."""


EPP_OPEN_STREAMS: Final = Metric(
    "kvtier_epp_open_streams", Kind.GAUGE, "Streams of gateways that are open now."
)
EPP_READY_ENDPOINTS: Final = Metric(
    "kvtier_epp_ready_endpoints", Kind.GAUGE, "Endpoints that may be picked now."
)
EPP_DROPPED_REQUESTS: Final = Metric(
    "kvtier_epp_dropped_requests",
    Kind.COUNTER,
    "Requests that the gateway was told to refuse, by the reason in the response's header.",
    ("drop",),
)
EPP_BROKEN_STREAMS: Final = Metric(
    "kvtier_epp_broken_streams",
    Kind.COUNTER,
    "Streams ended because the gateway sent a message that cannot come then.",
)
EPP_BROKEN_CONNECTIONS: Final = Metric(
    "kvtier_epp_broken_connections",
    Kind.COUNTER,
    "Connections of gateways closed because what came on them was not HTTP/2, or a flood.",
)
EPP_ELSEWHERE_REQUESTS: Final = Metric(
    "kvtier_epp_elsewhere_requests",
    Kind.COUNTER,
    "Requests that another endpoint than the picked one served; with `--observe-responses` only.",
)
EPP_OBSERVED_TOKENS: Final = Metric(
    "kvtier_epp_observed_tokens",
    Kind.COUNTER,
    "Tokens that responses told of; with `--observe-responses` only.",
    ("counted",),
)
EPP_CHOOSING_SECONDS: Final = Metric(
    "kvtier_epp_choosing_seconds",
    Kind.HISTOGRAM,
    "Time to choose an endpoint, tokenizing included.",
    (),
    (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0),
)
EPP_FIRST_CHUNK_SECONDS: Final = Metric(
    "kvtier_epp_first_chunk_seconds",
    Kind.HISTOGRAM,
    "From the choice to the first byte of the answer; with `--observe-responses` only.",
    (),
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)

EPP_METRICS: Final[tuple[Metric, ...]] = (
    EPP_OPEN_STREAMS,
    EPP_READY_ENDPOINTS,
    EPP_DROPPED_REQUESTS,
    EPP_BROKEN_STREAMS,
    EPP_BROKEN_CONNECTIONS,
    EPP_ELSEWHERE_REQUESTS,
    EPP_OBSERVED_TOKENS,
    EPP_CHOOSING_SECONDS,
    EPP_FIRST_CHUNK_SECONDS,
)
"""What `kvtier epp --metrics-port` exposes."""


def _table(metrics: tuple[Metric, ...]) -> list[str]:
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        cells = (f"`{metric.name}`", metric.kind.value, labels, metric.documentation)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


ROUTER_SCRAPES: Final = Metric(
    "kvtier_router_scrapes",
    Kind.COUNTER,
    "Looks at a replica's metrics: `failed` without an answer in time, or with one that is none.",
    ("replica", "scraped"),
)
ROUTER_BAD_VALUES: Final = Metric(
    "kvtier_router_bad_values",
    Kind.COUNTER,
    "Numbers in a replica's metrics that cannot be, and were left out.",
    ("replica",),
)
ROUTER_RESTARTS: Final = Metric(
    "kvtier_router_restarts",
    Kind.COUNTER,
    "Times that a replica's metrics told of another process than before.",
    ("replica",),
)
ROUTER_MESSAGES: Final = Metric(
    "kvtier_router_messages",
    Kind.COUNTER,
    "Messages of KV events: read; bad, not of the known form; repeated; foreign, of a model that "
    "no replica serves.",
    ("source", "message"),
)
ROUTER_EVENT_BLOCKS: Final = Metric(
    "kvtier_router_event_blocks", Kind.COUNTER, "Blocks that KV events told of.", ("source",)
)
ROUTER_BAD_EVENTS: Final = Metric(
    "kvtier_router_bad_events",
    Kind.COUNTER,
    "KV events that could not be read, in messages that could.",
    ("source",),
)
ROUTER_GAPS: Final = Metric(
    "kvtier_router_gaps",
    Kind.COUNTER,
    "Gaps in the numbers of messages: seen; filled by a replay; forgotten, since what was known "
    "was not whole any more, or the connection broke; restart, the publisher began anew.",
    ("source", "gap"),
)
ROUTER_DROPPED_BLOCKS: Final = Metric(
    "kvtier_router_dropped_blocks",
    Kind.COUNTER,
    "Blocks of KV events that changed nothing, by reason (docs/reference/router-index.md).",
    ("why",),
)
ROUTER_REFUSED_BLOCKS: Final = Metric(
    "kvtier_router_refused_blocks",
    Kind.GAUGE,
    "Blocks that found no room in what their replica, or shared storage, may take in the index.",
)
ROUTER_KNOWN_BLOCKS: Final = Metric(
    "kvtier_router_known_blocks",
    Kind.GAUGE,
    "Blocks that the index knows of a replica by its KV events.",
    ("replica",),
)

ROUTER_METRICS: Final[tuple[Metric, ...]] = (
    ROUTER_SCRAPES,
    ROUTER_BAD_VALUES,
    ROUTER_RESTARTS,
    ROUTER_MESSAGES,
    ROUTER_EVENT_BLOCKS,
    ROUTER_BAD_EVENTS,
    ROUTER_GAPS,
    ROUTER_DROPPED_BLOCKS,
    ROUTER_REFUSED_BLOCKS,
    ROUTER_KNOWN_BLOCKS,
)
"""What `kvtier route` and `kvtier epp` expose of what they learn of replicas."""


def render_markdown() -> str:
    """The reference page of all metrics."""
    lines = [
        "# Metrics",
        "",
        "Generated from `kvtier.metrics`; do not edit. They stand in the engine's own `/metrics`,",
        "beside the engine's labels. Counters are exposed with `_total` after the name, histograms",
        "as `_bucket`, `_sum` and `_count`.",
        "",
        *_table(METRICS),
        "",
        "## Of `kvtier evict --metrics-port`",
        "",
        *_table(EVICTOR_METRICS),
        "",
        "## Of `kvtier epp --metrics-port`",
        "",
        *_table(EPP_METRICS),
        "",
        "## Of `kvtier route`",
        "",
        *_table(ROUTE_METRICS),
        "",
        "## Of `kvtier route` and of `kvtier epp --metrics-port`: what they learn",
        "",
        *_table(ROUTER_METRICS),
    ]
    lines += ["", "## Labels", "", "| label | values |", "|---|---|"]
    for label, values in LABEL_VALUES.items():
        lines.append(f"| `{label}` | {', '.join(f'`{value}`' for value in values)} |")
    return "\n".join(lines) + "\n"
