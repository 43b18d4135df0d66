"""The scheduler half: answers vLLM's questions from a TieredCache. It decides nothing itself.

vLLM asks key by key and does groups, windows, states and preemption; the cache knows what is
where. Blocks that lie below RAM are promoted in one batch at the end of the scheduler step that
asked for them: until then nothing is evicted, so a key that was a HIT in this step still is when
vLLM loads it.

Invariants: HIT is said only of bytes that are whole and verified in RAM; every call returns at
once; a promotion that fails or passes its deadline is a MISS from then on; a bug of ours turns
the cache off and not the engine (`guard`).
"""

import functools
import logging
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
    OffloadingConnectorStats,
)
from vllm.v1.kv_offload.base import (
    LoadStoreSpec,
    Locality,
    LookupResult,
    Medium,
    OffloadingEvent,
    OffloadingManager,
    OffloadKey,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)
from vllm.v1.metrics.cache_hit_source import CacheHitSource

from kvtier.blocks.events import BlockEvent, Change
from kvtier.blocks.key import UNKNOWN_PARENT, BlockKey
from kvtier.cache.core import EngineLoad, EngineSave, TieredCache
from kvtier.clock import Clock
from kvtier.connectors.vllm.chains import RequestChains
from kvtier.connectors.vllm.seals import Seals
from kvtier.connectors.vllm.stats import Reporter
from kvtier.connectors.vllm.worker import ArenaLoadStoreSpec
from kvtier.index.local import RAM, Presence

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_RESULTS = {
    Presence.READY: LookupResult.HIT,
    Presence.PENDING: LookupResult.HIT_PENDING,
    Presence.BELOW: LookupResult.HIT_PENDING,
    Presence.UNKNOWN: LookupResult.RETRY,
    Presence.ABSENT: LookupResult.MISS,
}
_SOURCES = {"ram": CacheHitSource.HOST, "disk": CacheHitSource.DISK}
_LOCALITIES = {
    "disk": Locality.LOCAL,
    "shared": Locality.REMOTE,
    "objectstore": Locality.REMOTE,
}

_FLUSH_STEPS = 4
"""Scheduler steps after a reset by which the workers have waited for every older job: the
flush reaches them with the next step, and one more step may be under way at either end."""


class Guarded(Protocol):
    """An object with guarded methods."""

    is_broken: bool
    """True once a guarded method has failed: miss-only mode, until the engine restarts."""


S = TypeVar("S", bound=Guarded)


def guarded(
    fallback: Callable[[S], R],
) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Answer `fallback(self)` where the method fails, and ever after. ~0.1 us a call."""

    def decorate(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @functools.wraps(method)
        def call(self: S, /, *args: P.args, **named: P.kwargs) -> R:
            if self.is_broken:
                return fallback(self)
            try:
                return method(self, *args, **named)
            except Exception:
                self.is_broken = True
                _log.exception(
                    "kvtier has a bug in %s and serves only misses until the engine restarts; "
                    "please report this",
                    method.__name__,
                )
                return fallback(self)

        return call

    return decorate


def nothing(_: Any) -> None:
    """The fallback of methods that return nothing."""


@dataclass(slots=True)
class _Ask:
    """What one request looked up in this step, in order."""

    context: ReqContext
    keys: list[BlockKey] = field(default_factory=list)
    is_below: bool = False
    unknown: list[BlockKey] = field(default_factory=list)
    """Those that only a shared tier could hold, which has not been asked yet."""


def _miss(_: "KVTierManager") -> LookupResult:
    return LookupResult.MISS


def _no_events(_: "KVTierManager") -> Iterable[OffloadingEvent]:
    return ()


def _store_nothing(manager: "KVTierManager") -> PrepareStoreOutput | None:
    return PrepareStoreOutput(keys_to_store=[], store_spec=manager.spec([]), evicted_keys=[])


class KVTierManager(OffloadingManager):
    """vLLM's `OffloadingManager` over a `TieredCache`. All calls on the scheduler's thread."""

    def __init__(
        self,
        cache: TieredCache,
        seals: Seals,
        clock: Clock,
        *,
        reporter: Reporter,
        tokens_per_key: dict[int, int],
        slice_bytes: int,
        emits_events: bool,
        drain_s: float,
    ) -> None:
        self._cache = cache
        self._seals = seals
        self._clock = clock
        self._reporter = reporter
        self._tokens = tokens_per_key
        self._slice_bytes = slice_bytes
        self._emits_events = emits_events
        self._drain_s = drain_s
        self._asks: dict[str, _Ask] = {}
        self._loads: dict[str, EngineLoad] = {}
        self._saves: dict[BlockKey, EngineSave] = {}
        self._is_stepped = False
        self._flush_steps = 0
        self.is_broken = False

    @property
    def lock(self) -> AbstractContextManager[None]:
        """Nobody else enters: transfers report through `step`, on this thread."""
        return nullcontext()

    # -- lookups and loads -----------------------------------------------------------------

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """Nothing to prepare; vLLM's default policy."""
        return RequestOffloadingContext()

    @guarded(_miss)
    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """HIT, HIT_PENDING while bytes are coming, RETRY while others are asked, MISS. ~1 us."""
        if not self._is_stepped:
            self._is_stepped = True
            self._cache.step(self._clock.now_s())
        request = req_context.req_id
        block = BlockKey(key)
        found = self._cache.presence(request, block)
        if found is Presence.ABSENT:
            return LookupResult.MISS
        ask = self._asks.get(request)
        if ask is None:
            ask = self._asks[request] = _Ask(req_context)
        if found is Presence.UNKNOWN:
            ask.unknown.append(block)
        else:
            ask.keys.append(block)
            ask.is_below |= found is not Presence.READY
        return _RESULTS[found]

    @guarded(lambda _: CacheHitSource.EXTERNAL_UNSPECIFIED)
    def get_load_source(self, key: OffloadKey, req_context: ReqContext) -> CacheHitSource:
        """The tier a HIT came from, also when it was promoted for this request."""
        tier = self._cache.origin(req_context.req_id, BlockKey(key))
        return _SOURCES.get(self._cache.tier_names[tier], CacheHitSource.EXTERNAL_UNSPECIFIED)

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        """Pin blocks that were a HIT in this step and name their slots."""
        blocks = [BlockKey(key) for key in keys]
        load = self._cache.begin_load(req_context.req_id, blocks)
        if load is None:
            # Cannot be: nothing leaves RAM between the HIT and here. To go on would be to
            # compute on wrong bytes, which is the one thing that must not happen.
            raise AssertionError("kvtier: a block left RAM between lookup and load")
        self._loads[req_context.req_id] = load
        self._asks.pop(req_context.req_id, None)
        return self.spec(load.slots)

    @guarded(nothing)
    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """The copy is over."""
        load = self._loads.pop(req_context.req_id, None)
        if load is not None:
            self._cache.end_load(load)

    # -- stores ----------------------------------------------------------------------------

    @guarded(_store_nothing)
    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput | None:
        """Reserve slots for the blocks that RAM lacks; None where they do not all fit now."""
        # Writes that have ended since the step began no longer hold their slots.
        self._cache.step(self._clock.now_s())
        offered = list(keys)
        chains = RequestChains.of(req_context)
        parents = chains.parents(offered, req_context, self._tokens)
        save = self._cache.begin_save([BlockKey(key) for key in offered], parents)
        if save is None:
            return None
        if save.keys:
            self._seals.break_seals(save.slots)
            for key in save.keys:
                self._saves[key] = save
        return PrepareStoreOutput(
            keys_to_store=[OffloadKey(key) for key in save.keys],
            store_spec=self.spec(save.slots),
            evicted_keys=[],
        )

    @guarded(nothing)
    def complete_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext, success: bool = True
    ) -> None:
        """Publish what the workers really wrote; see `seals`."""
        save: EngineSave | None = None
        for key in keys:
            save = self._saves.pop(BlockKey(key), save)
        if save is None:
            return
        whole = self._seals.whole(save.slots).tolist() if success else [False] * len(save.slots)
        failed = [slot for slot, is_whole in zip(save.slots, whole, strict=True) if not is_whole]
        self._cache.end_save(save, frozenset(failed))

    # -- steps, requests, the end ----------------------------------------------------------

    @guarded(nothing)
    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """Start the promotions this step asked for; release those of requests that now run."""
        self._cache.step(self._clock.now_s())
        for request in context.new_req_ids:
            self._asks.pop(request, None)
            self._cache.release_request(request)
        for request, ask in self._asks.items():
            if ask.unknown:
                self._ask_others(request, ask)
            if ask.is_below:
                self._cache.promote(request, ask.keys)
        self._asks.clear()
        self._is_stepped = False
        if not self._emits_events:
            # Nobody drains them then.
            self._cache.take_events()
        if self._flush_steps:
            self._flush_steps -= 1
            if not self._flush_steps:
                self.on_reset_flushed()

    @guarded(nothing)
    def on_request_finished(self, req_context: ReqContext) -> None:
        """The request's whole prefix was used just now; nothing of it stays pinned."""
        self._cache.touch(RequestChains.of(req_context).chain(req_context, self._tokens))
        self._asks.pop(req_context.req_id, None)
        self._cache.release_request(req_context.req_id)

    @guarded(lambda _: False)
    def has_pending_work(self) -> bool:
        """True while blocks wait for room below or a reset waits for the workers."""
        return self._cache.is_waiting or self._flush_steps > 0

    @guarded(nothing)
    def reset_cache(self) -> None:
        """Forget everything in every tier. Slots under copy stay out of use until flushed."""
        self._asks.clear()
        self._loads.clear()
        self._saves.clear()
        self._cache.reset()
        self._flush_steps = _FLUSH_STEPS

    @guarded(nothing)
    def on_reset_flushed(self) -> None:
        """No copy from before the reset runs any more (vLLM says so from 0.33 on)."""
        self._flush_steps = 0
        self._cache.finish_reset()

    @guarded(_no_events)
    def take_events(self) -> Iterable[OffloadingEvent]:
        """What entered and left which tier since the last call."""
        return [self._event(event) for event in self._cache.take_events()]

    @guarded(nothing)
    def get_stats(self) -> OffloadingConnectorStats | None:
        """Increments for vLLM's metrics; None most of the time."""
        return self._reporter.report(self._clock.now_s())

    def shutdown(self) -> None:
        """Let queued writes finish for a moment, then release everything. Idempotent."""
        self._cache.close(self._drain_s)
        self._seals.close()

    def spec(self, slots: list[int]) -> ArenaLoadStoreSpec:
        """What a worker needs to know to find `slots`."""
        return ArenaLoadStoreSpec(
            slots,
            arena=self._cache.arena.handle,
            seals=self._seals.handle,
            slice_bytes=self._slice_bytes,
        )

    def _ask_others(self, request: str, ask: _Ask) -> None:
        """Find out what shared tiers hold of the prefix that a request asked for."""
        left = set(ask.unknown)
        for chain in RequestChains.of(ask.context).chains(ask.context, self._tokens):
            if not left.isdisjoint(chain):
                left.difference_update(chain)
                self._cache.discover(request, chain)
        for key in left:
            # The tail of a prefix that ends within a block: in no chain.
            self._cache.discover(request, [key], UNKNOWN_PARENT)

    def _event(self, event: BlockEvent) -> OffloadingEvent:
        is_ram = event.tier == self._cache.tier_names[RAM]
        return OffloadingEvent(
            keys=[OffloadKey(key) for key in event.keys],
            medium=Medium.CPU if is_ram else Medium.STORAGE,
            removed=event.change is Change.REMOVED,
            locality=_LOCALITIES.get(event.tier),
            ownership=None if is_ram else event.tier,
            removal_expected=not is_ram and event.change is Change.STORED,
        )
