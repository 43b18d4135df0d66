"""What `kvtier route` and `kvtier epp` expose: each of its own, and what both learn."""

from typing import Final

from kvtier.metrics.declaration import Metric, MetricKind

_REQUEST_BUCKETS_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)

ROUTE_REQUESTS: Final = Metric(
    "kvtier_route_requests", MetricKind.COUNTER, "Requests, by how they ended.", ("outcome",)
)
ROUTE_SENT_REQUESTS: Final = Metric(
    "kvtier_route_sent_requests", MetricKind.COUNTER, "Sent to a replica, also again.", ("replica",)
)
ROUTE_RETRIED_REQUESTS: Final = Metric(
    "kvtier_route_retried_requests",
    MetricKind.COUNTER,
    "Times that a replica could not be reached, or did not answer, before the client saw a byte.",
)
ROUTE_QUEUED_REQUESTS: Final = Metric(
    "kvtier_route_queued_requests", MetricKind.GAUGE, "Requests that wait for a replica with room."
)
ROUTE_IN_FLIGHT_REQUESTS: Final = Metric(
    "kvtier_route_in_flight_requests", MetricKind.GAUGE, "Sent and not ended.", ("replica",)
)
ROUTE_REPLICA_STATE: Final = Metric(
    "kvtier_route_replica_state",
    MetricKind.GAUGE,
    "Whether a replica gets requests: 0 it does, 1 not, since requests could not be delivered, "
    "2 not, since it is not healthy.",
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
    "From a request's headers to the first bytes of its answer's body.",
    (),
    _REQUEST_BUCKETS_S,
)
ROUTE_REQUEST_SECONDS: Final = Metric(
    "kvtier_route_request_seconds",
    MetricKind.HISTOGRAM,
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
    "kvtier_epp_open_streams", MetricKind.GAUGE, "Streams of gateways that are open now."
)
EPP_READY_ENDPOINTS: Final = Metric(
    "kvtier_epp_ready_endpoints", MetricKind.GAUGE, "Endpoints that may be picked now."
)
EPP_DROPPED_REQUESTS: Final = Metric(
    "kvtier_epp_dropped_requests",
    MetricKind.COUNTER,
    "Requests that the gateway was told to refuse, by the reason in the response's header.",
    ("drop",),
)
EPP_BROKEN_STREAMS: Final = Metric(
    "kvtier_epp_broken_streams",
    MetricKind.COUNTER,
    "Streams ended because the gateway sent a message that cannot come then.",
)
EPP_BROKEN_CONNECTIONS: Final = Metric(
    "kvtier_epp_broken_connections",
    MetricKind.COUNTER,
    "Connections of gateways closed because what came on them was not HTTP/2, or a flood.",
)
EPP_ELSEWHERE_REQUESTS: Final = Metric(
    "kvtier_epp_elsewhere_requests",
    MetricKind.COUNTER,
    "Requests that another endpoint than the picked one served; with `--observe-responses` only.",
)
EPP_OBSERVED_TOKENS: Final = Metric(
    "kvtier_epp_observed_tokens",
    MetricKind.COUNTER,
    "Tokens that responses told of; with `--observe-responses` only.",
    ("counted",),
)
EPP_CHOOSING_SECONDS: Final = Metric(
    "kvtier_epp_choosing_seconds",
    MetricKind.HISTOGRAM,
    "Time to choose an endpoint, tokenizing included.",
    (),
    (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0),
)
EPP_FIRST_CHUNK_SECONDS: Final = Metric(
    "kvtier_epp_first_chunk_seconds",
    MetricKind.HISTOGRAM,
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

ROUTER_SCRAPES: Final = Metric(
    "kvtier_router_scrapes",
    MetricKind.COUNTER,
    "Looks at a replica's metrics: `failed` without an answer in time, or with one that is none.",
    ("replica", "scraped"),
)
ROUTER_BAD_VALUES: Final = Metric(
    "kvtier_router_bad_values",
    MetricKind.COUNTER,
    "Numbers in a replica's metrics that cannot be, and were left out.",
    ("replica",),
)
ROUTER_RESTARTS: Final = Metric(
    "kvtier_router_restarts",
    MetricKind.COUNTER,
    "Times that a replica's metrics told of another process than before.",
    ("replica",),
)
ROUTER_MESSAGES: Final = Metric(
    "kvtier_router_messages",
    MetricKind.COUNTER,
    "Messages of KV events: read; bad, not of the known form; repeated; foreign, of a model that "
    "no replica serves.",
    ("source", "message"),
)
ROUTER_EVENT_BLOCKS: Final = Metric(
    "kvtier_router_event_blocks", MetricKind.COUNTER, "Blocks that KV events told of.", ("source",)
)
ROUTER_BAD_EVENTS: Final = Metric(
    "kvtier_router_bad_events",
    MetricKind.COUNTER,
    "KV events that could not be read, in messages that could.",
    ("source",),
)
ROUTER_GAPS: Final = Metric(
    "kvtier_router_gaps",
    MetricKind.COUNTER,
    "Gaps in the numbers of messages: seen; filled by a replay; forgotten, since what was known "
    "was not whole any more, or the connection broke; restart, the publisher began anew.",
    ("source", "gap"),
)
ROUTER_DROPPED_BLOCKS: Final = Metric(
    "kvtier_router_dropped_blocks",
    MetricKind.COUNTER,
    "Blocks of KV events that changed nothing, by reason (docs/reference/router-index.md).",
    ("why",),
)
ROUTER_REFUSED_BLOCKS: Final = Metric(
    "kvtier_router_refused_blocks",
    MetricKind.GAUGE,
    "Blocks that found no room in what their replica, or shared storage, may take in the index.",
)
ROUTER_KNOWN_BLOCKS: Final = Metric(
    "kvtier_router_known_blocks",
    MetricKind.GAUGE,
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
