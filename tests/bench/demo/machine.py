"""A machine in a model: engines that take modelled time, on a clock that only they move.

The demo's phases run for real against it, so that their total is that of a machine of any speed.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kvtier.clock import VirtualClock
from kvtier_bench.client import CompletionResult
from kvtier_bench.demo.engine import Engine, Load
from kvtier_bench.demo.sizing import BLOCK_TOKENS
from kvtier_bench.server import ServerSettings, Tell
from kvtier_bench.workload import Workload, WorkloadPrompt

# Measured on two cores with AVX-512 and nothing else running.
LINEAR_S, SQUARE_S, DECODE_S = 0.00033, 0.33e-6, 0.06


class Machine:
    """What outlives an engine: the clock, how fast things are, and what the tiers store."""

    def __init__(
        self,
        *,
        speed: float = 1.0,
        decode_speed: float | None = None,
        import_s: float = 25.0,
        start_s: float = 8.0,
        slower_after_s: float = 1e9,
        slower: float = 1.0,
    ) -> None:
        self.clock = VirtualClock()
        self.slowness = 1 / speed
        self.decode_slowness = self.slowness if decode_speed is None else 1 / decode_speed
        self.import_s, self.start_s = import_s, start_s
        self.slower_after_s, self.slower = slower_after_s, slower
        self.stored: dict[str, set[int]] = {}
        self.started: list[ServerSettings] = []
        self.forgetful: set[str] = set()
        """Tiers that lose everything."""
        self.wrong: set[str] = set()
        """Tiers whose blocks change the answer."""

    def spend(self, seconds: float) -> float:
        """Let the time pass that this takes now; return it."""
        if self.clock.now_s() > self.slower_after_s:
            seconds *= self.slower
        self.clock.advance(seconds)
        return seconds

    @contextmanager
    def open_engine(self, settings: ServerSettings, tell: Tell) -> Iterator[Engine]:
        """Start an engine; the first start imports vLLM."""
        self.spend(self.start_s + (0.0 if self.started else self.import_s))
        self.started.append(settings)
        tell("started")
        yield ModelEngine(self, settings)
        self.clock.advance(2.0)


class ModelEngine:
    """Caches whole blocks on a device with LRU, in RAM, and in what outlives it."""

    def __init__(self, machine: Machine, settings: ServerSettings) -> None:
        self._machine = machine
        self._capacity = settings.device_blocks - 1
        self._longest = settings.max_model_len
        self._device: OrderedDict[int, None] = OrderedDict()
        extra = (settings.kv_transfer or {}).get("kv_connector_extra_config", {})
        self._tiers: dict[str, set[int]] = {}
        if extra:
            self._tiers["ram"] = set()
        for tier in ("disk", "shared"):
            if tier in extra:
                self._tiers[tier] = machine.stored.setdefault(tier, set())
        self._hits = dict.fromkeys(self._tiers, 0.0)

    def ask(self, tokens: Sequence[int], output_len: int, salt: str) -> CompletionResult:
        """Take as long as the blocks that nothing holds, and the output, need."""
        assert len(tokens) + output_len <= self._longest
        blocks = _block_keys(tokens, salt)
        cached, wrong = 0, False
        for key in blocks[: (len(tokens) - 1) // BLOCK_TOKENS]:
            tier = next((t for t, kept in self._tiers.items() if key in kept), None)
            if key not in self._device and tier is None:
                break
            if key not in self._device and tier is not None:
                self._hits[tier] += BLOCK_TOKENS
                wrong = wrong or tier in self._machine.wrong
            cached += BLOCK_TOKENS
        for key in blocks:
            self._device[key] = None
            self._device.move_to_end(key)
            for tier, kept in self._tiers.items():
                if tier not in self._machine.forgetful:
                    kept.add(key)
        while len(self._device) > self._capacity:
            self._device.popitem(last=False)
        computed_s = _prefill_s(len(tokens)) - _prefill_s(cached)
        ttft_s = self._machine.spend(computed_s * self._machine.slowness + 0.05)
        output_s = self._machine.spend(output_len * DECODE_S * self._machine.decode_slowness)
        return CompletionResult(
            text="garbage" if wrong else str(sum(tokens)),
            ttft_s=ttft_s,
            e2e_s=ttft_s + output_s,
            prompt_tokens=len(tokens),
            cached_tokens=cached,
            output_tokens=output_len,
        )

    def serve(
        self,
        prompts: Sequence[WorkloadPrompt],
        workload: Workload,
        salt: str,
        *,
        deadline_s: float,
        tell: Tell,
    ) -> Load:
        """Answer one request after the other."""
        clock = self._machine.clock
        started_s = clock.now_s()
        load = Load([], [])
        for prompt in prompts:
            if clock.now_s() >= deadline_s:
                break
            load.answers.append(self.ask(prompt.tokens, workload.output_len, salt))
            load.finished_s.append(clock.now_s() - started_s)
            tell(f"{len(load.answers)} answered")
        return load

    def reset_device(self) -> None:
        """Empty the device."""
        self._device.clear()

    def hits(self) -> dict[str, float]:
        """Return the tokens that each tier served."""
        return dict(self._hits)


def _prefill_s(tokens: int) -> float:
    return tokens * (LINEAR_S + tokens * SQUARE_S)


def _block_keys(tokens: Sequence[int], salt: str) -> list[int]:
    keys: list[Any] = []
    parent = hash(salt)
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        parent = hash((parent, tuple(tokens[end - BLOCK_TOKENS : end])))
        keys.append(parent)
    return keys
