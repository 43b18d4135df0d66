"""A real vLLM engine in a process of its own that follows orders, one line of JSON each.

`tests.engine.engine.Engine` starts it. The first line on standard input describes the engine;
each further line names a verb and its arguments, and gets one line as its answer. The engine has
its own process because tests restart it, kill it, and compare two of them. Inside the process
everything runs on one thread, so that a test can look into the cache between any two steps.
"""

import ctypes
import functools
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgspec
from prometheus_client import REGISTRY
from vllm import LLM, SamplingParams
from vllm.config import KVEventsConfig, KVTransferConfig
from vllm.model_executor.model_loader import dummy_loader
from vllm.model_executor.model_loader.weight_utils import initialize_single_dummy_weight

from kvtier.cache import build
from kvtier.cache.core import TieredCache
from kvtier.clock import MonotonicClock
from kvtier.connectors.vllm import spec
from kvtier.connectors.vllm.copier import DeviceJob, JobKind
from kvtier.connectors.vllm.cpu import HostCopier
from kvtier.connectors.vllm.manager import KVTierManager
from kvtier.testing.faults import Fault, FaultyTier
from kvtier.tiers.base import Tier
from kvtier.transfer.base import Direction

SETTLE_S = 60.0
DUMMY_SCALE = 0.2
SLOW_S = 1.0


class SwitchedCopier(HostCopier):
    """A copier whose loads of the groups in `broken` copy nothing."""

    broken: frozenset[int] = frozenset()

    def _copy(self, job: DeviceJob) -> bool:
        if job.kind is not JobKind.STORE and self.broken:
            copies = [copy for copy in job.copies if copy.group not in self.broken]
            job = msgspec.structs.replace(job, copies=copies)
        return super()._copy(job)


class Driver:
    """An engine. Its public methods are the verbs."""

    def __init__(self, llm: dict[str, Any], kvtier: dict[str, Any] | None, **more: Any) -> None:
        self._faulty: FaultyTier | None = None
        spec.HostCopier = SwitchedCopier  # type: ignore[misc,attr-defined]
        # The engine's own random weights are so small that no token influences another.
        dummy_loader.initialize_single_dummy_weight = functools.partial(
            initialize_single_dummy_weight, low=-DUMMY_SCALE, high=DUMMY_SCALE
        )
        if more.pop("faulty", False):
            self._wrap_disk()
        events = more.pop("events", None)
        if events:
            more["kv_events_config"] = KVEventsConfig(
                enable_kv_cache_events=True,
                publisher="zmq",
                endpoint=events,
                replay_endpoint=f"{events}-replay",
            )
        if kvtier is not None:
            more["kv_transfer_config"] = KVTransferConfig(
                kv_connector="OffloadingConnector",
                kv_role="kv_both",
                kv_connector_extra_config={"spec_name": "KVTier", **kvtier},
            )
        self._llm = LLM(**llm, **more)
        self._engine = self._llm.llm_engine
        self._core = self._engine.engine_core.engine_core
        self._internal: dict[str, str] = {}
        self._finished: dict[str, dict[str, Any]] = {}

    def add(
        self,
        request: str,
        ids: list[int],
        max_tokens: int,
        salt: str | None = None,
        logprobs: int | None = None,
    ) -> None:
        """Queue a greedy request that never ends early."""
        sampling = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=True, logprobs=logprobs
        )
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if salt is not None:
            prompt["cache_salt"] = salt
        self._engine.add_request(request, prompt, sampling)

    def step(self, count: int = 1) -> dict[str, Any]:
        """Run engine steps; return the requests that finished since the last answer."""
        for _ in range(count):
            for output in self._engine.step():
                if output.finished:
                    self._finished[output.request_id] = _describe(output)
        finished, self._finished = self._finished, {}
        return finished

    def drain(self) -> dict[str, Any]:
        """Run until no request is left; return those that finished."""
        finished: dict[str, Any] = {}
        while self._engine.has_unfinished_requests():
            finished.update(self.step())
        return finished

    def abort(self, requests: list[str]) -> None:
        """Abort requests by the names they were added with."""
        self._engine.abort_request(requests)

    def unfinished(self) -> int:
        """Return the number of unfinished requests."""
        count: int = self._engine.get_num_unfinished_requests()
        return count

    def settle(self) -> None:
        """Run until the engine is idle and no transfer runs; assert that nothing is held then."""
        give_up_s = time.monotonic() + SETTLE_S
        while self._core.scheduler.has_requests():
            self._engine.step()
            assert time.monotonic() < give_up_s, "the engine does not come to rest"
        cache, engine = self._cache, self._cache._engine
        while (
            any(
                engine.queued_blocks(tier, direction)
                for tier in range(1, len(cache.tier_names))
                for direction in Direction
            )
            or cache.is_waiting
        ):
            cache.step(MonotonicClock().now_s())
            time.sleep(0.005)
            assert time.monotonic() < give_up_s, "transfers do not end"
        cache.step(MonotonicClock().now_s())
        assert not cache._saves, "a save was never ended"
        assert not cache._loads, "a load was never ended"
        assert not any(cache._residency.index.pins), "a pin was never released"

    def reset(self, running: bool = False, connector: bool = False) -> bool:
        """Call vLLM's reset_prefix_cache; return whether it succeeded."""
        return bool(self._llm.reset_prefix_cache(running, connector))

    def groups(self) -> list[int]:
        """Return the KV-cache groups of the model."""
        return sorted(self._manager._tokens)

    def break_loads(self, groups: list[int]) -> None:
        """Make loads of these groups copy nothing from now on."""
        SwitchedCopier.broken = frozenset(groups)

    def inject(self, fault: str, count: int = 1) -> None:
        """Inject a fault into the next `count` calls of the disk tier."""
        assert self._faulty is not None
        self._faulty.inject(Fault[fault], count)

    def release(self) -> None:
        """Let the disk tier's hung calls return."""
        assert self._faulty is not None
        self._faulty.release()

    def counters(self) -> dict[str, Any]:
        """Return the cache's counters: by tier, and those that belong to no tier."""
        cache = self._cache
        tiers = {
            name: {**asdict(counted), "resident": held, "capacity": capacity}
            for name, counted, held, capacity in zip(
                cache.tier_names,
                cache.counters.tiers,
                cache.resident_blocks,
                cache.capacity_blocks,
                strict=True,
            )
        }
        return {
            **tiers,
            "miss_blocks": cache.counters.miss_blocks,
            "expired_promotions": cache.counters.expired_promotions,
        }

    def metrics(self) -> dict[str, float]:
        """Return the samples of kvtier and of preemption that Prometheus would scrape."""
        return {
            sample.name + "".join(f",{v}" for k, v in sample.labels.items() if k == "tier"): (
                sample.value
            )
            for family in REGISTRY.collect()
            for sample in family.samples
            if sample.name.startswith(("kvtier_", "vllm:num_preemptions"))
        }

    def check(self) -> None:
        """Assert the cache's invariants, and that no bug has switched the cache off."""
        assert not self._manager.is_broken, "kvtier met a bug and went on without its cache"
        self._cache.check()

    def rss_bytes(self) -> int:
        """Return the bytes of this process's own resident memory, without the arena and files.

        The allocator first returns its free pages: a high-water mark is not a leak.
        """
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/status", encoding="ascii") as status:
            line = next(line for line in status if line.startswith("RssAnon:"))
        return int(line.split()[1]) * 1024

    def close(self) -> None:
        """Shut the engine down as its exit would."""
        if self._core.scheduler.connector is not None:
            self.check()
        self._engine.engine_core.shutdown()

    @property
    def _manager(self) -> KVTierManager:
        manager: KVTierManager = self._core.scheduler.connector.connector_scheduler.manager
        return manager

    @property
    def _cache(self) -> TieredCache:
        return self._manager._cache

    def _wrap_disk(self) -> None:
        all_builders = build._tier_builders

        def first_is_faulty(*args: Any) -> list[Any]:
            builders = all_builders(*args)
            layout = args[1]

            def open_faulty() -> Tier:
                self._faulty = FaultyTier(
                    builders[0].build(), block_bytes=layout.block_bytes, slow_s=SLOW_S
                )
                return self._faulty

            return [builders[0]._replace(build=open_faulty), *builders[1:]]

        build._tier_builders = first_is_faulty


def _describe(output: Any) -> dict[str, Any]:
    completion = output.outputs[0]
    chosen = completion.logprobs and [
        {str(token): entry.logprob for token, entry in position.items()}
        for position in completion.logprobs
    ]
    return {
        "tokens": list(completion.token_ids),
        "cached": output.num_cached_tokens,
        "logprobs": chosen,
    }


def main() -> None:
    """Answer orders on standard output; what the engine prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(work: Callable[[], Any]) -> bool:
        try:
            result = {"result": work()}
        except Exception as error:  # the test fails with it
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(result) + "\n")
        return "result" in result

    drivers: list[Driver] = []
    config = json.loads(sys.stdin.readline())
    if not answer(lambda: drivers.append(Driver(**config))):
        sys.exit(1)
    for line in sys.stdin:
        order = json.loads(line)
        verb = getattr(drivers[0], order.pop("verb"))
        answer(lambda verb=verb, order=order: verb(**order))
        if verb.__name__ == "close":
            break


if __name__ == "__main__":
    main()
