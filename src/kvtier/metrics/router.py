"""The metrics of `kvtier route` and of `kvtier epp`, and those that both have."""

from typing import Final

from kvtier.metrics.declaration import Metric, MetricKind

_REQUEST_BUCKETS_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)

ROUTE_REQUESTS: Final = Metric(
    "kvtier_route_requests",
    MetricKind.COUNTER,
    "Requests that ended, by outcome: `ok` (answered by a replica), `refused` (4xx), "
    "`overloaded` (429), `unavailable` (503), `failed` (other 5xx, or cut off), `cancelled` "
    "(the client disconnected).",
    ("outcome",),
)
ROUTE_SENT_REQUESTS: Final = Metric(
    "kvtier_route_sent_requests",
    MetricKind.COUNTER,
    "Requests sent to a replica, retries included.",
    ("replica",),
)
ROUTE_RETRIED_REQUESTS: Final = Metric(
    "kvtier_route_retried_requests",
    MetricKind.COUNTER,
    "Times that a replica could not be reached, or disconnected before the client had received "
    "a byte.",
)
ROUTE_QUEUED_REQUESTS: Final = Metric(
    "kvtier_route_queued_requests", MetricKind.GAUGE, "Requests that wait for a replica with room."
)
ROUTE_IN_FLIGHT_REQUESTS: Final = Metric(
    "kvtier_route_in_flight_requests",
    MetricKind.GAUGE,
    "Requests that a replica is working on.",
    ("replica",),
)
ROUTE_REPLICA_STATE: Final = Metric(
    "kvtier_route_replica_state",
    MetricKind.GAUGE,
    "Whether a replica receives requests: 0 yes, 1 no, because requests could not be "
    "delivered to it, 2 no, because its health checks fail.",
    ("replica",),
)
ROUTE_CHOOSING_SECONDS: Final = Metric(
    "kvtier_route_choosing_seconds",
    MetricKind.HISTOGRAM,
    "Time to choose a replica.",
    (),
    (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
)
ROUTE_FIRST_BYTE_SECONDS: Final = Metric(
    "kvtier_route_first_byte_seconds",
    MetricKind.HISTOGRAM,
    "Time from the headers of a request to the first byte of the body of its answer.",
    (),
    _REQUEST_BUCKETS_S,
)
ROUTE_REQUEST_SECONDS: Final = Metric(
    "kvtier_route_request_seconds",
    MetricKind.HISTOGRAM,
    "Time from the headers of a request to the end of its answer.",
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
"""The metrics of `kvtier route`'s data path."""


EPP_OPEN_STREAMS: Final = Metric(
    "kvtier_epp_open_streams", MetricKind.GAUGE, "Open ext_proc streams of gateways."
)
EPP_READY_ENDPOINTS: Final = Metric(
    "kvtier_epp_ready_endpoints", MetricKind.GAUGE, "Endpoints that can be picked now."
)
EPP_DROPPED_REQUESTS: Final = Metric(
    "kvtier_epp_dropped_requests",
    MetricKind.COUNTER,
    "Requests that the gateway was told to reject, by the reason given in the response header.",
    ("drop",),
)
EPP_BROKEN_STREAMS: Final = Metric(
    "kvtier_epp_broken_streams",
    MetricKind.COUNTER,
    "Streams that were ended because the gateway sent a message out of order.",
)
EPP_BROKEN_CONNECTIONS: Final = Metric(
    "kvtier_epp_broken_connections",
    MetricKind.COUNTER,
    "Gateway connections that were closed for a protocol error of HTTP/2 or for flooding.",
)
EPP_ELSEWHERE_REQUESTS: Final = Metric(
    "kvtier_epp_elsewhere_requests",
    MetricKind.COUNTER,
    "Requests that another endpoint than the picked one served. Counted only with "
    "`--observe-responses`.",
)
EPP_OBSERVED_TOKENS: Final = Metric(
    "kvtier_epp_observed_tokens",
    MetricKind.COUNTER,
    "Tokens that responses reported. Counted only with `--observe-responses`.",
    ("counted",),
)
EPP_CHOOSING_SECONDS: Final = Metric(
    "kvtier_epp_choosing_seconds",
    MetricKind.HISTOGRAM,
    "Time to choose an endpoint, tokenization included.",
    (),
    (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0),
)
EPP_FIRST_CHUNK_SECONDS: Final = Metric(
    "kvtier_epp_first_chunk_seconds",
    MetricKind.HISTOGRAM,
    "Time from the choice to the first byte of the response. Measured only with "
    "`--observe-responses`.",
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
"""The metrics of `kvtier epp`, exposed with `--metrics-port`."""

ROUTER_SCRAPES: Final = Metric(
    "kvtier_router_scrapes",
    MetricKind.COUNTER,
    "Scrapes of a replica's metrics; `failed` ones got no valid answer in time.",
    ("replica", "scraped"),
)
ROUTER_BAD_VALUES: Final = Metric(
    "kvtier_router_bad_values",
    MetricKind.COUNTER,
    "Impossible numbers in a replica's metrics, which were ignored.",
    ("replica",),
)
ROUTER_RESTARTS: Final = Metric(
    "kvtier_router_restarts",
    MetricKind.COUNTER,
    "Restarts of a replica, as seen in its metrics.",
    ("replica",),
)
ROUTER_MESSAGES: Final = Metric(
    "kvtier_router_messages",
    MetricKind.COUNTER,
    "Messages of KV events: `read`; `bad` (malformed); `repeated`; `foreign` (of a model that "
    "no replica serves).",
    ("source", "message"),
)
ROUTER_EVENT_BLOCKS: Final = Metric(
    "kvtier_router_event_blocks", MetricKind.COUNTER, "Blocks that KV events reported.", ("source",)
)
ROUTER_BAD_EVENTS: Final = Metric(
    "kvtier_router_bad_events",
    MetricKind.COUNTER,
    "Malformed KV events in well-formed messages.",
    ("source",),
)
ROUTER_GAPS: Final = Metric(
    "kvtier_router_gaps",
    MetricKind.COUNTER,
    "Gaps in the sequence numbers of messages: `seen`; `filled` by a replay; `forgotten` (the "
    "blocks of the source were removed from the index, because events were lost or the "
    "connection broke); `restart` (the publisher began anew).",
    ("source", "gap"),
)
ROUTER_DROPPED_BLOCKS: Final = Metric(
    "kvtier_router_dropped_blocks",
    MetricKind.COUNTER,
    "Blocks of KV events that did not change the index, by reason "
    "(docs/reference/router-index.md).",
    ("why",),
)
ROUTER_REFUSED_BLOCKS: Final = Metric(
    "kvtier_router_refused_blocks",
    MetricKind.GAUGE,
    "Blocks that the index did not accept because their replica, or shared storage, had "
    "reached its limit.",
)
ROUTER_KNOWN_BLOCKS: Final = Metric(
    "kvtier_router_known_blocks",
    MetricKind.GAUGE,
    "Blocks that the index knows of a replica from its KV events.",
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
"""The metrics of what `kvtier route` and `kvtier epp` learn about replicas."""
