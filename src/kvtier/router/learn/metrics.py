"""Scraping of a replica's `/metrics`: its load and its tiers, from the engine's and kvtier's names.

A replica's values are not trusted: implausible numbers are ignored and counted, and a response is
read for at most BODY_MAX bytes and TIMEOUT_S seconds. Rates are measured between two scrapes (see
`rates`). The text format is parsed here rather than by the Prometheus client library, which creates
an object for each line of each histogram, a hundred times a second for a whole fleet.

Invariants: no response of a replica raises an exception; after a failed scrape the last load stays,
and `updated_s` shows its age.
"""

import asyncio
import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

import aiohttp
import msgspec

from kvtier.clock import Clock, MonotonicClock
from kvtier.index.fleet.base import DEVICE, FleetIndex
from kvtier.metrics.engine import CAPACITY_TOKENS, HIT_TOKENS, TRANSFER_SECONDS
from kvtier.router.choose.base import Endpoint, ReplicaLoad, ReplicaTier
from kvtier.router.learn.gauges import GaugeNames, parse_name
from kvtier.router.learn.rates import PeakRate, PrefillRate, Prefills

BODY_MAX: Final = 4 << 20
TIMEOUT_S: Final = 2.0

_INLINE_MAX: Final = 256 << 10
"""Larger responses are parsed on a thread; this much takes a millisecond."""
_COUNT_MAX: Final = 1_000_000
_TOKENS_MAX: Final = 1 << 50
_TIER: Final = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_TIERS_MAX: Final = 6

_CONFIGS: Final = {
    "vllm:cache_config_info": ("block_size", "num_gpu_blocks"),
    "sglang:cache_config_info": ("page_size", "num_pages"),
}
_LORA: Final = "vllm:lora_requests_info"
_CAPACITY: Final = CAPACITY_TOKENS.name
_HIT_TOKENS: Final = f"{HIT_TOKENS.name}_total"
_TRANSFER_S: Final = f"{TRANSFER_SECONDS.name}_sum"
_LOAD_S: Final = "vllm:kv_offload_load_time_total"
_PREFILL_TOKENS: Final = "vllm:request_prefill_kv_computed_tokens_sum"
_PREFILL_COUNT: Final = "vllm:request_prefill_kv_computed_tokens_count"
_PREFILL_S: Final = "vllm:request_prefill_time_seconds_sum"
_LATENCY_S: Final = "vllm:e2e_request_latency_seconds_sum"
_STARTED_S: Final = "process_start_time_seconds"
_LABEL: Final = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*,?')
_ESCAPED: Final = re.compile(r"\\(.)")
_UNESCAPED: Final = {"n": "\n"}


class ScrapeCounts(msgspec.Struct):
    """The counters of one replica's scrapes."""

    scrapes: int = 0
    failures: int = 0
    """Scrapes that timed out, failed, or returned too long a body."""
    bad_values: int = 0
    """Implausible numbers, which were ignored."""
    restarts: int = 0
    """Scrapes that found a new process since the one before, whose caches are empty."""


class Sample(NamedTuple):
    """One line of the text format, without its name."""

    labels: dict[str, str]
    value: float


class MetricSamples(NamedTuple):
    """The samples in one response, of the names that were requested."""

    samples: dict[str, list[Sample]]
    bad_lines: int
    """The lines of those names that are malformed or have no finite value."""

    def of(self, name: str) -> list[Sample]:
        """Return all series of `name`; empty if there is none."""
        return self.samples.get(name, [])

    def total(self, *names: str) -> float | None:
        """Return the finite sum over the series of the first of `names` that is present."""
        for name in names:
            found = self.samples.get(name)
            if found:
                try:
                    return math.fsum(sample.value for sample in found)
                except OverflowError:  # such numbers carry no information
                    return None
        return None


def read_samples(text: str, names: Collection[str]) -> MetricSamples:
    """Parse the lines of `names` in the Prometheus text format, at 0.2 us per line.

    Timestamps and exemplars are ignored, and so are samples without a finite value.
    """
    samples: dict[str, list[Sample]] = {}
    bad = 0
    for line in text.split("\n"):
        # A name ends at its labels or at a space.
        end = line.find("{")
        if end < 0:
            end = line.find(" ")
        name = line[:end] if end > 0 else ""
        if not name or name not in names:
            continue
        sample = _sample(line, end)
        if sample is None:
            bad += 1
        else:
            samples.setdefault(name, []).append(sample)
    return MetricSamples(samples, bad)


def _sample(line: str, at: int) -> Sample | None:
    labels: dict[str, str] = {}
    if line[at] == "{":
        at += 1
        while (found := _LABEL.match(line, at)) is not None:
            labels[found[1]] = _ESCAPED.sub(_unescape, found[2])
            at = found.end()
        if line[at : at + 1] != "}":
            return None
        at += 1
    parts = line[at:].split(None, 1)
    try:
        value = float(parts[0])
    except (IndexError, ValueError):
        return None
    return Sample(labels, value) if math.isfinite(value) else None


def _unescape(found: re.Match[str]) -> str:
    return _UNESCAPED.get(found[1], found[1])


class LoadReader:
    """A converter of one replica's responses to its load; it keeps counters to measure rates."""

    def __init__(self, names: GaugeNames | None = None) -> None:
        """Raises ValueError if one of `names` is malformed."""
        self._names = GaugeNames() if names is None else names
        chosen = (*self._names.waiting, *self._names.running, *self._names.usage)
        self._selectors = {name: parse_name(name) for name in chosen}
        self._wanted = frozenset(
            {
                *(name for name, _ in self._selectors.values()),
                *_CONFIGS,
                *(_LORA, _CAPACITY, _HIT_TOKENS, _TRANSFER_S, _LOAD_S),
                *(_PREFILL_TOKENS, _PREFILL_COUNT, _PREFILL_S, _LATENCY_S, _STARTED_S),
            }
        )
        self._prefill = PrefillRate()
        self._started_s: float | None = None
        self._loads: dict[str, PeakRate] = {}
        self.bad_values = 0
        self.restarts = 0

    def parse(self, body: bytes) -> MetricSamples:
        """Return the samples in a response. May run on a thread."""
        return read_samples(body.decode("utf-8", "replace"), self._wanted)

    def load(self, found: MetricSamples, now_s: float) -> ReplicaLoad:
        """Return the load that the samples describe. Takes ten microseconds."""
        self.bad_values += found.bad_lines
        self._note_start(found.total(_STARTED_S))
        block_tokens, device_tokens = self._device(found)
        return ReplicaLoad(
            waiting=int(self._gauge(found, self._names.waiting, _COUNT_MAX)),
            running=int(self._gauge(found, self._names.running, _COUNT_MAX)),
            kv_usage=self._usage(found),
            block_tokens=block_tokens,
            tiers=self._tiers(found, device_tokens, now_s),
            adapters=_adapters(found),
            prefill_tokens_per_s=self._prefill.update(_prefills(found), now_s),
            updated_s=now_s,
        )

    # -- parts -----------------------------------------------------------------------------

    def _note_start(self, started_s: float | None) -> None:
        if started_s is None:
            return
        self.restarts += self._started_s not in (None, started_s)
        self._started_s = started_s

    def _series(self, found: MetricSamples, names: Iterable[str]) -> list[Sample]:
        for chosen in names:
            name, labels = self._selectors[chosen]
            series = [
                sample
                for sample in found.of(name)
                if all(sample.labels.get(key) == value for key, value in labels.items())
            ]
            if series:
                return series
        return []

    def _gauge(self, found: MetricSamples, names: Iterable[str], most: float) -> float:
        """Return the gauge's sum over the engines behind one address."""
        series = [sample.value for sample in self._series(found, names)]
        good = [value for value in series if 0 <= value <= most]
        self.bad_values += len(series) - len(good)
        return sum(good)

    def _usage(self, found: MetricSamples) -> float:
        series = [sample.value for sample in self._series(found, self._names.usage)]
        good = [value for value in series if 0 <= value <= 1]
        self.bad_values += len(series) - len(good)
        return sum(good) / len(good) if good else 0.0

    def _device(self, found: MetricSamples) -> tuple[int, int]:
        """Return the tokens per block and the device cache's tokens; 0 if not reported."""
        block_tokens = capacity = 0
        for name, (size, count) in _CONFIGS.items():
            for sample in found.of(name):
                tokens = self._whole(sample.labels.get(size, ""))
                blocks = self._whole(sample.labels.get(count, ""))
                if tokens:
                    block_tokens = tokens
                    capacity += min(tokens * blocks, _TOKENS_MAX)
        return block_tokens, capacity

    def _whole(self, text: str) -> int:
        if text in ("", "None"):  # vLLM reports None until it knows the number
            return 0
        if not text.isascii() or not text.isdigit() or len(text) > 12:
            self.bad_values += 1
            return 0
        return int(text)

    def _tiers(
        self, found: MetricSamples, device_tokens: int, now_s: float
    ) -> Mapping[str, ReplicaTier]:
        tiers = {DEVICE: ReplicaTier(capacity_tokens=device_tokens)} if device_tokens else {}
        hits = _by_tier(found.of(_HIT_TOKENS))
        promoted = [
            sample
            for sample in found.of(_TRANSFER_S)
            if sample.labels.get("direction") == "promote"
        ]
        seconds = _by_tier(promoted)
        # Blocks of every tier pass through RAM, so RAM's rate to the device is that of all tiers.
        # The seconds are not reported before the first load.
        load_s = found.total(_LOAD_S) or 0.0
        for name, capacity in _by_tier(found.of(_CAPACITY)).items():
            if not 0 <= capacity <= _TOKENS_MAX or len(tiers) > _TIERS_MAX or name == DEVICE:
                self.bad_values += 1
                continue
            rate = self._loads.setdefault(name, PeakRate())
            if name == "ram":
                measured = rate.update(sum(hits.values()) if hits else None, load_s, now_s)
            else:
                measured = rate.update(hits.get(name), seconds.get(name, 0.0), now_s)
            tiers[name] = ReplicaTier(capacity_tokens=int(capacity), load_tokens_per_s=measured)
        self._loads = {name: rate for name, rate in self._loads.items() if name in tiers}
        return tiers


class Scraper:
    """A scraper of one replica's metrics. Belongs to the event loop."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: str,
        *,
        names: GaugeNames | None = None,
        clock: Clock | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`url` is the address of the metrics, such as `http://10.0.0.7:8000/metrics`."""
        self._session = session
        self._url = url
        self._clock = MonotonicClock() if clock is None else clock
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._reader = LoadReader(names)
        self.counts = ScrapeCounts()

    async def scrape(self) -> ReplicaLoad | None:
        """Scrape the replica and return its load; on failure, count it and return None."""
        self.counts.scrapes += 1
        try:
            body = await self._body()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            body = None
        if body is None:
            self.counts.failures += 1
            return None
        if len(body) > _INLINE_MAX:
            found = await asyncio.to_thread(self._reader.parse, body)
        else:
            found = self._reader.parse(body)
        load = self._reader.load(found, self._clock.now_s())
        self.counts.bad_values = self._reader.bad_values
        self.counts.restarts = self._reader.restarts
        return load

    async def _body(self) -> bytes | None:
        headers = {"Accept": "text/plain", "Accept-Encoding": "identity"}
        async with self._session.get(
            self._url, headers=headers, timeout=self._timeout, allow_redirects=False
        ) as answer:
            if answer.status != 200:
                return None
            pieces = bytearray()
            async for piece in answer.content.iter_any():
                pieces += piece
                if len(pieces) > BODY_MAX:
                    answer.close()
                    return None
            return bytes(pieces)


def apply_load(endpoint: Endpoint, load: ReplicaLoad, indexes: Iterable[FleetIndex]) -> None:
    """Set the endpoint's load, and the capacities of its tiers in `indexes`."""
    endpoint.load = load
    for index in indexes:
        for tier, known in load.tiers.items():
            if known.capacity_tokens:
                index.resize(endpoint.name, tier, known.capacity_tokens)


def _prefills(found: MetricSamples) -> Prefills:
    return Prefills(
        tokens=found.total(_PREFILL_TOKENS),
        requests=found.total(_PREFILL_COUNT),
        seconds=found.total(_PREFILL_S),
        latency_s=found.total(_LATENCY_S),
    )


def _by_tier(samples: Iterable[Sample]) -> dict[str, float]:
    """Return the sum by tier over the engines behind one address."""
    tiers: dict[str, float] = {}
    for sample in samples:
        tier = sample.labels.get("tier", "")
        if _TIER.fullmatch(tier):
            tiers[tier] = tiers.get(tier, 0.0) + sample.value
    return tiers


def _adapters(found: MetricSamples) -> frozenset[str]:
    """Return the LoRA adapters of the newest series, whose value is the time it was written."""
    samples = found.of(_LORA)
    if not samples:
        return frozenset()
    labels = max(samples, key=lambda sample: sample.value).labels
    listed = ",".join(
        labels.get(name, "") for name in ("running_lora_adapters", "waiting_lora_adapters")
    )
    return frozenset(filter(None, (name.strip() for name in listed.split(","))))
