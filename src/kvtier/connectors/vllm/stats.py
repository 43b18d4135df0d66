"""Reports the cache's counters as vLLM's Prometheus metrics.

vLLM takes increments since the last call and sends them to its front end with each step.
Therefore they are reported only when something has changed, and at most ten times a second.
"""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
    OffloadingConnectorStats,
)
from vllm.v1.kv_offload.base import (
    OffloadingCounterMetadata,
    OffloadingGaugeMetadata,
    OffloadingHistogramMetadata,
    OffloadingMetricMetadata,
)

from kvtier.cache.core import TieredCache
from kvtier.metrics import engine as metrics
from kvtier.metrics.declaration import Metric, MetricKind
from kvtier.transfer.base import Direction
from kvtier.transfer.breaker import BreakerState

_INTERVAL_S = 0.1
_BREAKERS = {"read": Direction.READ, "write": Direction.WRITE}
_STATES = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}
_DIRECTIONS = {
    Direction.FIND: "find",
    Direction.READ: "promote",
    Direction.WRITE: "demote",
    Direction.DELETE: "delete",
}


def definitions() -> dict[str, OffloadingMetricMetadata]:
    """Return the declarations of all engine metrics in vLLM's types."""
    return {metric.name: _metadata(metric) for metric in metrics.METRICS}


def _metadata(metric: Metric) -> OffloadingMetricMetadata:
    common: dict[str, Any] = {
        "documentation": metric.documentation,
        "labelnames": metric.labels,
    }
    if metric.kind is MetricKind.COUNTER:
        return OffloadingCounterMetadata(**common)
    if metric.kind is MetricKind.GAUGE:
        return OffloadingGaugeMetadata(**common)
    return OffloadingHistogramMetadata(**common, buckets=metric.buckets)


class Reporter:
    """A converter of cumulative counters into increments. For one thread; never blocks."""

    def __init__(self, cache: TieredCache, block_bytes: int, tokens_per_block: float) -> None:
        self._cache = cache
        self._block_bytes = block_bytes
        self._tokens = tokens_per_block
        self._sent: dict[tuple[str, tuple[str, ...]], float] = {}
        self._next_s = 0.0

    def report(self, now_s: float) -> OffloadingConnectorStats | None:
        """Return the changes since the last report; None if there are none or it is too recent."""
        if now_s < self._next_s:
            return None
        stats = OffloadingConnectorStats()
        for metric, labels, value in self._counters():
            sent = self._sent.get((metric.name, labels))
            if value != sent:
                # Zeros are sent once: a rate needs the series before the first increase.
                self._sent[(metric.name, labels)] = value
                stats.increase_counter(metric.name, value - (sent or 0.0), labels)
        for metric, labels, value in self._gauges():
            if self._sent.get((metric.name, labels)) != value:
                self._sent[(metric.name, labels)] = value
                stats.set_gauge(metric.name, value, labels)
        names = self._cache.tier_names
        for tier, direction, seconds in self._cache.counters.take_durations():
            labels = (names[tier], _DIRECTIONS[Direction(direction)])
            stats.observe_histogram(metrics.TRANSFER_SECONDS.name, seconds, labels)
        if stats.is_empty():
            return None
        self._next_s = now_s + _INTERVAL_S
        return stats

    def _counters(self) -> list[tuple[Metric, tuple[str, ...], float]]:
        counters = self._cache.counters
        rows: list[tuple[Metric, tuple[str, ...], float]] = [
            (metrics.MISS_BLOCKS, (), counters.miss_blocks),
            (metrics.PROMOTE_EXPIRED_REQUESTS, (), counters.expired_promotions),
        ]
        for name, tier in zip(self._cache.tier_names, counters.tiers, strict=True):
            rows += [
                (metrics.HIT_BLOCKS, (name,), tier.hit_blocks),
                (metrics.HIT_TOKENS, (name,), tier.hit_blocks * self._tokens),
                (metrics.READ_BYTES, (name,), tier.read_blocks * self._block_bytes),
                (metrics.WRITTEN_BYTES, (name,), tier.written_blocks * self._block_bytes),
                (metrics.EVICTED_BLOCKS, (name,), tier.evicted_blocks),
                (metrics.REJECTED_BLOCKS, (name,), tier.rejected_blocks),
                (metrics.DROPPED_BLOCKS, (name,), tier.dropped_blocks),
                (metrics.CORRUPT_BLOCKS, (name,), tier.corrupt_blocks),
                (metrics.MISSING_BLOCKS, (name,), tier.missing_blocks),
                (metrics.FAULT_BLOCKS, (name,), tier.fault_blocks),
            ]
        return rows

    def _gauges(self) -> list[tuple[Metric, tuple[str, ...], float]]:
        cache = self._cache
        rows: list[tuple[Metric, tuple[str, ...], float]] = []
        for name, held, capacity in zip(
            cache.tier_names, cache.resident_blocks, cache.capacity_blocks, strict=True
        ):
            rows += [
                (metrics.OCCUPANCY_BLOCKS, (name,), held),
                (metrics.OCCUPANCY_TOKENS, (name,), held * self._tokens),
                (metrics.CAPACITY_BLOCKS, (name,), capacity),
                (metrics.CAPACITY_TOKENS, (name,), capacity * self._tokens),
            ]
        for tier in range(1, len(cache.tier_names)):
            for direction, label in _DIRECTIONS.items():
                waiting = cache.queued_blocks(tier, direction)
                labels = (cache.tier_names[tier], label)
                rows.append((metrics.TRANSFER_QUEUE_BLOCKS, labels, waiting))
            for calls, direction in _BREAKERS.items():
                state = _STATES[cache.breaker(tier, direction)]
                rows.append((metrics.BREAKER_STATE, (cache.tier_names[tier], calls), state))
        return rows
