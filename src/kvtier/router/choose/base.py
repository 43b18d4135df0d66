"""The contracts of scorers, filters and pickers, and the data they work on.

A `Profile` runs them, for `kvtier route` and `kvtier epp` alike. All of it runs on the event
loop's thread, and none of it may block.

Invariant: a decision depends only on the request, the state of the replicas and the seed, so that
a logged request can be decided again under another profile.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from kvtier.index.fleet.base import Match
from kvtier.index.fleet.prompt import Prompt


class InferenceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An inference request, as far as choosing a replica needs it."""

    request_id: str
    model: str
    """The model as the client names it; for a LoRA adapter, the adapter's name."""
    prompt: Prompt
    max_tokens: int = 0
    """Output tokens that the client allows; 0 if it does not say."""
    headers: Mapping[str, str] = {}
    """Header values by lower-case name."""
    priority: int = 0


class ReplicaTier(msgspec.Struct, frozen=True, kw_only=True):
    """One tier of a replica, as reported by the replica's metrics."""

    capacity_tokens: int
    """0 if unknown."""
    load_tokens_per_s: float = 0.0
    """Measured rate of loading from the tier to the device; 0 if unknown, and for the device."""


class ReplicaLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The state that a replica's metrics reported at the last scrape."""

    waiting: int = 0
    """Requests in the engine's queue."""
    running: int = 0
    """Requests in the engine's running batch."""
    kv_usage: float = 0.0
    """Share of the device's KV cache in use, 0 to 1."""
    block_tokens: int = 0
    """Tokens per KV block; 0 if unknown."""
    tiers: Mapping[str, ReplicaTier] = {}
    """Tiers by name, from the fastest to the slowest; the device comes first."""
    adapters: frozenset[str] = frozenset()
    """Names of the loaded LoRA adapters."""
    prefill_tokens_per_s: float = 0.0
    """Measured prefill rate; 0 if unknown."""
    updated_s: float = 0.0
    """When the metrics were scraped, on the router's clock."""


class Endpoint(msgspec.Struct, kw_only=True, eq=False):
    """A replica that can be chosen, in the term of the Gateway API Inference Extension.

    It is mutable: the metrics scraper and the data path keep it up to date.
    """

    name: str
    """Unique in the fleet: `namespace/pod`, or the address."""
    address: str
    """`host:port`; `[::1]:8000` for IPv6."""
    models: frozenset[str]
    labels: Mapping[str, str] = {}
    load: ReplicaLoad = ReplicaLoad()
    in_flight: int = 0
    """Requests that this router has sent to the replica and that have not ended."""
    in_flight_tokens: int = 0
    """Prompt tokens plus allowed output tokens of the requests in flight."""
    pending_tokens: int | None = None
    """Prompt tokens that the replica still has to compute, as expected when they were sent, for
    requests of this router that have not returned a first byte; None if this is not counted."""

    @property
    def waiting(self) -> int:
        """Requests waiting in the engine: as last reported, or those sent here that do not run.

        A request counts as soon as it is sent, so that two requests within one scrape interval
        do not both join the queue that looked shortest.
        """
        return max(self.load.waiting, self.in_flight - self.load.running)


class Candidate(msgspec.Struct, frozen=True):
    """A replica and, per index, how much of the request's prompt it holds."""

    endpoint: Endpoint
    matches: Mapping[str, Match]
    """Matches by index name. The profile guarantees an entry for every index that a plugin
    names."""


class Scorer(Protocol):
    """A plugin that rates candidates; the profile weights its scores."""

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """Return one score per candidate, in the same order, each in [0, 1]; higher is better."""
        ...


class Filter(Protocol):
    """A plugin that removes candidates from a decision."""

    def keep(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates to keep, in the same order; the list may be empty."""
        ...


class Picker(Protocol):
    """A plugin that chooses from scored candidates."""

    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """Return the best candidate, then the fallbacks in order.

        The result is not empty unless `candidates` is.
        """
        ...


class RoutingObserver(Protocol):
    """The additional method of a plugin that learns where requests are sent."""

    def routed(
        self, request: InferenceRequest, candidates: Sequence[Candidate], chosen: Candidate
    ) -> None:
        """Record that `request` was sent to `chosen`, which was chosen from `candidates`."""
        ...
