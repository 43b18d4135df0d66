"""The scheduler's half of the connector: an `OffloadingManager` over a `TieredCache`.

vLLM looks up key by key and handles groups, windows, states and preemption; the cache knows
where blocks are. Blocks in lower tiers are promoted in one batch at the end of the scheduler
step that looked them up. Nothing is evicted before that, so a key that was a HIT in a step still
is one when vLLM loads it in the same step.

Invariants: a HIT means that the bytes in RAM are whole and verified; every call returns at once;
a block whose promotion failed or passed its deadline is a MISS from then on; a bug in kvtier
disables the cache and does not stop the engine (`guarded`).
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
"""Scheduler steps after a reset until the workers have waited for every older job: the flush
reaches them with the next step, and each side may have one more step in progress."""


class Guarded(Protocol):
    """An object with guarded methods."""

    is_broken: bool
    """True once a guarded method has failed: from then on every lookup is a miss."""


S = TypeVar("S", bound=Guarded)


def guarded(
    fallback: Callable[[S], R],
) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Return a decorator that turns a failure of a method into `fallback(self)`, permanently.

    Operational faults never get here, because the cache reports them as misses. An exception
    means that an assumption is broken and the state of the cache cannot be trusted, so the
    cache is not used again: every lookup misses and nothing is stored until the engine
    restarts. Costs about 0.1 us per call.
    """

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
                    "kvtier has a bug in %s and reports only misses until the engine restarts; "
                    "please report this",
                    method.__name__,
                )
                return fallback(self)

        return call

    return decorate


def do_nothing(_: Any) -> None:
    """Return None: the fallback of methods without a result."""


@dataclass(slots=True)
class _Lookups:
    """The keys that one request looked up in this step, in order."""

    context: ReqContext
    keys: list[BlockKey] = field(default_factory=list)
    is_below: bool = False
    unknown: list[BlockKey] = field(default_factory=list)
    """Keys that a shared tier may hold and that have not been queried there."""


def _miss(_: "KVTierManager") -> LookupResult:
    return LookupResult.MISS


def _no_events(_: "KVTierManager") -> Iterable[OffloadingEvent]:
    return ()


def _store_nothing(manager: "KVTierManager") -> PrepareStoreOutput | None:
    return PrepareStoreOutput(keys_to_store=[], store_spec=manager.spec([]), evicted_keys=[])


class KVTierManager(OffloadingManager):
    """An `OffloadingManager` over a `TieredCache`. All calls are on the scheduler's thread."""

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
        self._lookups: dict[str, _Lookups] = {}
        self._loads: dict[str, EngineLoad] = {}
        self._saves: dict[BlockKey, EngineSave] = {}
        self._is_stepped = False
        self._flush_steps = 0
        self.is_broken = False

    @property
    def lock(self) -> AbstractContextManager[None]:
        """No lock: transfers report through `step`, which runs on this thread."""
        return nullcontext()

    # -- lookups and loads -----------------------------------------------------------------

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """Return vLLM's default policy; nothing needs to be prepared."""
        return RequestOffloadingContext()

    @guarded(_miss)
    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """Return where a block is, in about 1 us.

        HIT: in RAM. HIT_PENDING: on its way into RAM, or in a lower tier. RETRY: a shared tier
        is being queried. MISS: in no tier.
        """
        if not self._is_stepped:
            self._is_stepped = True
            self._cache.step(self._clock.now_s())
        request = req_context.req_id
        block = BlockKey(key)
        found = self._cache.presence(request, block)
        if found is Presence.ABSENT:
            return LookupResult.MISS
        lookups = self._lookups.get(request)
        if lookups is None:
            lookups = self._lookups[request] = _Lookups(req_context)
        if found is Presence.UNKNOWN:
            lookups.unknown.append(block)
        else:
            lookups.keys.append(block)
            lookups.is_below |= found is not Presence.READY
        return _RESULTS[found]

    @guarded(lambda _: CacheHitSource.EXTERNAL_UNSPECIFIED)
    def get_load_source(self, key: OffloadKey, req_context: ReqContext) -> CacheHitSource:
        """Return the tier that supplied a HIT, also if it was promoted for this request."""
        tier = self._cache.origin(req_context.req_id, BlockKey(key))
        return _SOURCES.get(self._cache.tier_names[tier], CacheHitSource.EXTERNAL_UNSPECIFIED)

    def prepare_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> LoadStoreSpec:
        """Pin blocks that were a HIT in this step, and return their slots."""
        blocks = [BlockKey(key) for key in keys]
        load = self._cache.begin_load(req_context.req_id, blocks)
        if load is None:
            # Nothing is evicted between the HIT and this call, so this is a bug. Stopping the
            # engine is better than computing on wrong bytes.
            raise AssertionError("kvtier: a block left RAM between lookup and load")
        self._loads[req_context.req_id] = load
        self._lookups.pop(req_context.req_id, None)
        return self.spec(load.slots)

    @guarded(do_nothing)
    def complete_load(self, keys: Collection[OffloadKey], req_context: ReqContext) -> None:
        """Release the slots of a load."""
        load = self._loads.pop(req_context.req_id, None)
        if load is not None:
            self._cache.end_load(load)

    # -- stores ----------------------------------------------------------------------------

    @guarded(_store_nothing)
    def prepare_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext
    ) -> PrepareStoreOutput | None:
        """Reserve slots for the blocks that RAM lacks; return None if they do not all fit now."""
        # Writes that have ended since the step began release their slots.
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

    @guarded(do_nothing)
    def complete_store(
        self, keys: Collection[OffloadKey], req_context: ReqContext, success: bool = True
    ) -> None:
        """Publish the blocks whose slots all workers have sealed, see `seals`."""
        save: EngineSave | None = None
        for key in keys:
            save = self._saves.pop(BlockKey(key), save)
        if save is None:
            return
        whole = self._seals.whole(save.slots).tolist() if success else [False] * len(save.slots)
        failed = [slot for slot, is_whole in zip(save.slots, whole, strict=True) if not is_whole]
        self._cache.end_save(save, frozenset(failed))

    # -- steps, requests and shutdown ------------------------------------------------------

    @guarded(do_nothing)
    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """Start the promotions and queries of this step; release requests that now run."""
        self._cache.step(self._clock.now_s())
        for request in context.new_req_ids:
            self._lookups.pop(request, None)
            self._cache.release_request(request)
        for request, lookups in self._lookups.items():
            if lookups.unknown:
                self._discover(request, lookups)
            if lookups.is_below:
                self._cache.promote(request, lookups.keys)
        self._lookups.clear()
        self._is_stepped = False
        if not self._emits_events:
            # vLLM does not take the events, so they must not accumulate.
            self._cache.take_events()
        if self._flush_steps:
            self._flush_steps -= 1
            if not self._flush_steps:
                self.on_reset_flushed()

    @guarded(do_nothing)
    def on_request_finished(self, req_context: ReqContext) -> None:
        """Record a use of the request's whole prefix, and release the request."""
        self._cache.touch(RequestChains.of(req_context).all_keys(req_context, self._tokens))
        self._lookups.pop(req_context.req_id, None)
        self._cache.release_request(req_context.req_id)

    @guarded(lambda _: False)
    def has_pending_work(self) -> bool:
        """Return True while writes wait for room in a tier, or a reset waits for the workers."""
        return self._cache.is_waiting or self._flush_steps > 0

    @guarded(do_nothing)
    def reset_cache(self) -> None:
        """Remove every block from every tier; slots being copied stay reserved until flushed."""
        self._lookups.clear()
        self._loads.clear()
        self._saves.clear()
        self._cache.reset()
        self._flush_steps = _FLUSH_STEPS

    @guarded(do_nothing)
    def on_reset_flushed(self) -> None:
        """Release the slots of copies from before the reset. vLLM calls this from 0.33 on."""
        self._flush_steps = 0
        self._cache.finish_reset()

    @guarded(_no_events)
    def take_events(self) -> Iterable[OffloadingEvent]:
        """Return the insertions and removals in all tiers since the last call."""
        return [self._event(event) for event in self._cache.take_events()]

    @guarded(do_nothing)
    def get_stats(self) -> OffloadingConnectorStats | None:
        """Return increments for vLLM's metrics; None if there is nothing to report."""
        return self._reporter.report(self._clock.now_s())

    def shutdown(self) -> None:
        """Wait for queued writes up to the drain time, then release everything. Idempotent."""
        self._cache.close(self._drain_s)
        self._seals.close()

    def spec(self, slots: list[int]) -> ArenaLoadStoreSpec:
        """Return the message that tells a worker which slots to use."""
        return ArenaLoadStoreSpec(
            slots,
            arena=self._cache.arena.handle,
            seals=self._seals.handle,
            slice_bytes=self._slice_bytes,
        )

    def _discover(self, request: str, lookups: _Lookups) -> None:
        """Query shared tiers for the chains that contain the request's unknown keys."""
        remaining = set(lookups.unknown)
        for chain in RequestChains.of(lookups.context).group_chains(lookups.context, self._tokens):
            if not remaining.isdisjoint(chain):
                remaining.difference_update(chain)
                self._cache.discover(request, chain)
        for key in remaining:
            # The tail of a prefix that ends within a block is in no chain.
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
