"""The contracts of choosing: filter, score, pick. One file a scorer, filter or picker.

`profile` runs them; `http` (kvtier route) and `extproc` (kvtier epp) both choose through it.
Everything here belongs to one thread, the event loop's; nothing blocks.

Invariant: a choice depends on the request, the endpoints' state and the seed alone, so that a
logged request can be decided again under another profile.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from kvtier.index.fleet.base import Match
from kvtier.index.fleet.prompt import Prompt


class InferenceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a request before it goes anywhere."""

    request_id: str
    model: str
    """As the client names it; the adapter's name where it asks for a LoRA adapter."""
    prompt: Prompt
    max_tokens: int = 0
    """Output tokens the client allows; 0: it does not say."""
    headers: Mapping[str, str] = {}
    """Names in lower case."""
    priority: int = 0


class ReplicaTier(msgspec.Struct, frozen=True, kw_only=True):
    """One tier of a replica, as its metrics tell."""

    capacity_tokens: int
    """0: not known."""
    load_tokens_per_s: float = 0.0
    """Measured rate at which its tokens come back to the device; 0: not known, or the device."""


class ReplicaLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A replica's own metrics, as last scraped."""

    waiting: int = 0
    """Requests queued."""
    running: int = 0
    kv_usage: float = 0.0
    """Share of the device's KV cache in use, 0 to 1."""
    block_tokens: int = 0
    """Tokens of a KV block; 0: not known."""
    tiers: Mapping[str, ReplicaTier] = {}
    """From the fastest to the slowest; the device first."""
    adapters: frozenset[str] = frozenset()
    """LoRA adapters that are loaded."""
    prefill_tokens_per_s: float = 0.0
    """Measured; 0: not known."""
    updated_s: float = 0.0
    """Of the router's clock."""


class Endpoint(msgspec.Struct, kw_only=True, eq=False):
    """A replica that may be chosen. Mutable: scrapers and the data path keep it up to date."""

    name: str
    """Unique in the fleet: `namespace/pod`, or the address."""
    address: str
    """`host:port`; `[::1]:8000` for IPv6."""
    models: frozenset[str]
    labels: Mapping[str, str] = {}
    load: ReplicaLoad = ReplicaLoad()
    in_flight: int = 0
    """Requests this router has sent there and not seen end."""
    in_flight_tokens: int = 0
    """Their prompt tokens and the output tokens that they allow."""
    pending_tokens: int | None = None
    """Prompt tokens that it still has to compute, as expected when they were sent, for those
    requests of this router that have had no first byte yet. None: nobody keeps count."""

    @property
    def waiting(self) -> int:
        """Requests that wait in the engine: as it last said, or those from here that do not run.

        What was sent since it last said so counts at once: two requests in the same half second
        need not join the same queue.
        """
        return max(self.load.waiting, self.in_flight - self.load.running)


class Candidate(msgspec.Struct, frozen=True):
    """An endpoint and what each index knows that it holds of this request's prompt."""

    endpoint: Endpoint
    matches: Mapping[str, Match]
    """By the index's name; the profile makes sure that a scorer's own index is there."""


class Scorer(Protocol):
    """Rates candidates. Weights belong to the profile."""

    def score(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[float]:
        """One number a candidate, in the same order, each in [0, 1], more is better."""
        ...


class Filter(Protocol):
    """Takes candidates away."""

    def keep(self, request: InferenceRequest, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Those that stay, in the same order; none where none will do."""
        ...


class Picker(Protocol):
    """Chooses from scored candidates."""

    def pick(
        self, request: InferenceRequest, candidates: Sequence[Candidate], scores: Sequence[float]
    ) -> list[Candidate]:
        """The best first, then the fallbacks in order; not empty where candidates are not."""
        ...


class RoutingObserver(Protocol):
    """What a plugin implements besides when it learns from what becomes of requests."""

    def routed(
        self, request: InferenceRequest, candidates: Sequence[Candidate], chosen: Candidate
    ) -> None:
        """`chosen` gets the request; `candidates` are those it was chosen from."""
        ...
