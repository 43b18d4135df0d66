"""The four phases of the demo.

Four servers, one after another, meet the same prompt: vLLM alone computes it; vLLM with kvtier
finds it in RAM; restarted, on disk; and another engine, which shares nothing but a folder, finds
it there. The first two also run a load of many prompts, without and with kvtier. The first
server's first requests show how fast the machine is, and `sizing` decides how much there is time
for.

A prefix that comes from RAM, from disk or from the folder must give, token for token, the answer
that the device's own copy gives: each is compared. Against vLLM alone the answers are counted
only: in bf16 the shape of a chunk can turn a close choice, with a cache or without.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvtier.clock import Clock
from kvtier_bench.client import CompletionResult
from kvtier_bench.demo.engine import Engine, Load, OpenEngine
from kvtier_bench.demo.findings import Findings, Met
from kvtier_bench.demo.sizing import (
    AIM_S,
    BLOCK_TOKENS,
    LIMIT_S,
    SETTLE_S,
    SHAPES,
    Costs,
    Shape,
    Sizes,
    Speed,
    choose_sizes,
    costs,
    first_shape,
    warm_up_s,
)
from kvtier_bench.lineup import kvtier_transfer
from kvtier_bench.progress import PhaseScreen
from kvtier_bench.server import ServerSettings
from kvtier_bench.workload import Encode, WorkloadPrompt, build_prompts, distinct_prompts

ALONE = "vLLM alone"
WITH = "vLLM + kvtier"
PHASES = {
    "alone": f"{ALONE}: computes the prompt",
    "tiers": f"{WITH}: finds it in RAM",
    "restarted": "restarted, RAM empty: finds it on disk",
    "shared": "another engine: finds it in a shared folder",
}

RAM_BYTES = 1024**3
DISK_CAPACITY = "3GiB"
COUNTERS_S = 1.0
"""Time in which the counters of the last request reach /metrics."""
PROBE_LENGTHS = (128, 512)
PROBE_OUTPUT = 4
PROBE_S = 8.0
"""The second probe is skipped if it would take longer."""
GREETING_TOKENS = 16
"""Tokens of a server's first request, which also initializes parts of the engine."""
FIRST_START_SHARE = 0.4
"""The first start imports vLLM; later starts are expected to take this share of its time."""


class Demo:
    """One run of the demo: the machine's speed, the chosen sizes and the findings.

    The sizes are chosen after the first requests, and the load once more after the long prompt
    has shown how prefill grows. From then on nothing starts that does not fit into the time left.
    """

    def __init__(
        self,
        model: Path,
        encode: Encode,
        screen: PhaseScreen,
        output: Path,
        aim_s: float,
        clock: Clock,
        open_engine: OpenEngine,
    ) -> None:
        self.findings = Findings()
        self._model = model
        self._encode: Encode = lru_cache(maxsize=8)(encode)  # the corpus is encoded only once
        self._screen = screen
        self._output = output
        self._aim_s = aim_s
        self._limit_s = aim_s + LIMIT_S - AIM_S
        self._clock = clock
        self._open_engine = open_engine
        self._began_s = clock.now_s()
        self._start_s = 0.0
        self._probed_tokens = 0
        self._speed: Speed
        self._sizes: Sizes
        self._prompt: WorkloadPrompt
        self._prompts: list[WorkloadPrompt] = []
        self._alone_load = Load([], [])
        self._checked: list[WorkloadPrompt] = []

    def run(self, folder: Path) -> None:
        """Run the phases, one server after another. The tiers store their blocks in `folder`."""
        disk, shared = folder / "disk", folder / "shared"
        everything = kvtier_transfer(RAM_BYTES, disk, DISK_CAPACITY, shared)
        only_shared = kvtier_transfer(RAM_BYTES, shared=shared)
        phases: dict[str, Callable[[], None]] = {
            "alone": self._run_alone,
            "tiers": lambda: self._run_tiers(everything),
            "restarted": lambda: self._run_later("kvtier-restarted", "disk", everything, disk),
            "shared": lambda: self._run_later("kvtier-other", "shared", only_shared, shared),
        }
        for name, phase in phases.items():
            if name in ("restarted", "shared") and not self._fits(
                self._start_s + getattr(self._costs, name)
            ):
                self.findings.left_out.append(name)
                self._screen.leave_out()
                continue
            started_s = self._clock.now_s()
            with self._screen.phase():
                phase()
            self.findings.seconds[name] = round(self._clock.now_s() - started_s, 1)
            self._expect(list(phases)[len(self.findings.seconds) :])

    # ---- the phases --------------------------------------------------------------------------

    def _run_alone(self) -> None:
        shape = first_shape(self._settings("", None, blocks=1).dtype)
        with self._engine("vllm-alone", None, shape) as engine:
            self._measure_speed(engine)
            self._choose(shape)
            if self._sizes.shape == shape:
                self._compute_and_serve(engine)
                return
        self._screen.tell("starting once more, with a device cache of another size")
        with self._engine("vllm-alone", None, self._sizes.shape) as engine:
            self._warm_up(engine)
            self._compute_and_serve(engine)

    def _measure_speed(self, engine: Engine) -> None:
        self._screen.tell("measuring how fast this machine is")
        greeting, *probes = distinct_prompts(self._encode, [GREETING_TOKENS, *PROBE_LENGTHS])
        engine.ask(greeting, 2, "speed")
        for prompt in probes:
            if self._probed_tokens and self._speed.prefill_s(len(prompt)) > PROBE_S:
                return
            answer = engine.ask(prompt, PROBE_OUTPUT, "speed")
            decode_s = (answer.e2e_s - answer.ttft_s) / (PROBE_OUTPUT - 1)
            self._probed_tokens = len(prompt)
            self._speed = Speed.measured(len(prompt), answer.ttft_s, decode_s)

    def _compute_and_serve(self, engine: Engine) -> None:
        self._prompt = build_prompts(self._sizes.prompt, self._encode, seed=1)[0]
        self._screen.tell(f"computing a prompt of {len(self._prompt.tokens):,} tokens")
        answer = self._ask(engine, self._prompt)
        self.findings.prompt_tokens = answer.prompt_tokens
        self.findings.met["cold"] = Met(ttft_s=answer.ttft_s, served_share=0.0)
        self._screen.result(_ttft_text(answer))
        self._speed = self._speed.refined(self._probed_tokens, answer.prompt_tokens, answer.ttft_s)
        self._choose(self._sizes.shape, (self._sizes.shape,), self._sizes.prompt_len)
        self.findings.speed, self.findings.sizes = self._speed, self._sizes
        self._screen.say(chosen_text(self._speed, self._sizes))
        if (load := self._sizes.workload) is None:
            return
        self._prompts = build_prompts(load, self._encode, seed=1)
        planned = self._costs
        loads_s = planned.alone_load + planned.tiers_load
        rest_s = planned.total - loads_s + 3 * self._start_s
        usable_s = planned.alone_load / loads_s * (self._left_s() - rest_s)
        self._alone_load = self._serve(engine, self._prompts, usable_s)

    def _run_tiers(self, transfer: dict[str, Any]) -> None:
        with self._engine("kvtier", transfer, self._sizes.shape) as engine:
            self._warm_up(engine)
            self._screen.tell("computing the prompt once more, to keep it")
            self._ask(engine, self._prompt)
            self._keep_text(engine, self._prompt, "device")
            self._clock.sleep(SETTLE_S)
            engine.reset_device()
            self._meet(engine, "ram")
            self._serve_again(engine)
            self._check_in_ram(engine)
            self._clock.sleep(SETTLE_S)

    def _serve_again(self, engine: Engine) -> None:
        """Serve the requests that vLLM alone answered, as far as time allows."""
        rest_s = self._costs.restarted + self._costs.shared + 2 * self._start_s
        rest_s += 3 * self._sizes.checks * self._check_s
        usable_s = self._left_s() - rest_s
        before = engine.hits()
        load = self._serve(engine, self._prompts[: len(self._alone_load.answers)], usable_s)
        if not load.answers:
            return
        self._clock.sleep(COUNTERS_S)
        hits = _gained(before, engine.hits())
        served = self._prompts[: len(load.answers)]
        self.findings.load_requests = len(served)
        self.findings.loads = {
            "alone": self._alone_load.summary(len(served), {}),
            "tiers": load.summary(len(served), hits),
        }
        for name, answers in (("alone", self._alone_load.answers), ("tiers", load.answers)):
            pairs = zip(served, answers, strict=False)
            self.findings.load_texts[name] = {each.label: answer.text for each, answer in pairs}
        self._checked = first_of_each_group(served)[: self._sizes.checks]

    def _check_in_ram(self, engine: Engine) -> None:
        """Compare answers whose prefix is on the device with answers from RAM."""
        self._screen.tell("comparing answers: prefix on the device, then in RAM")
        wanted, self._checked = self._checked, []
        for prompt in wanted:
            if self._fits(4 * self._check_s):
                self._ask(engine, prompt)
                self._keep_text(engine, prompt, "device")
                self._checked.append(prompt)
        self._clock.sleep(SETTLE_S)
        engine.reset_device()
        for prompt in self._checked:
            self._keep_text(engine, prompt, "ram")

    def _run_later(self, name: str, tier: str, transfer: dict[str, Any], stored: Path) -> None:
        with self._engine(name, transfer, self._sizes.shape) as engine:
            self._warm_up(engine)
            drop_cached_pages(stored)
            self._meet(engine, tier)
            for prompt in self._checked:
                if self._fits(self._check_s):
                    self._screen.tell(f"comparing answers from {tier}")
                    self._keep_text(engine, prompt, tier)

    # ---- requests ----------------------------------------------------------------------------

    def _warm_up(self, engine: Engine) -> None:
        if not warm_up_s(self._sizes, self._speed):
            return
        self._screen.tell("warming up")
        prompt = distinct_prompts(self._encode, [self._sizes.warm_up_len])[0]
        engine.ask(prompt, 2, "warm-up")
        engine.reset_device()
        engine.ask(prompt, 2, "warm-up")

    def _meet(self, engine: Engine, tier: str) -> None:
        """Time the prompt while only `tier` and the tiers below it hold its prefix."""
        self._screen.tell("asking the same prompt")
        before = engine.hits()
        answer = self._keep_text(engine, self._prompt, tier)
        self._screen.result(_ttft_text(answer))
        self._clock.sleep(COUNTERS_S)
        served = _gained(before, engine.hits()).get(tier, 0.0)
        self.findings.met[tier] = Met(
            ttft_s=answer.ttft_s, served_share=served / answer.prompt_tokens
        )

    def _keep_text(self, engine: Engine, prompt: WorkloadPrompt, place: str) -> CompletionResult:
        answer = self._ask(engine, prompt)
        label = "prompt" if prompt is self._prompt else prompt.label
        self.findings.texts.setdefault(place, {})[label] = answer.text
        return answer

    def _ask(self, engine: Engine, prompt: WorkloadPrompt) -> CompletionResult:
        # One at a time: in a batch, a neighbor can turn a close choice.
        salt = "prompt" if prompt is self._prompt else "load"
        return engine.ask(prompt.tokens, self._sizes.output_len, salt)

    def _serve(self, engine: Engine, prompts: Sequence[WorkloadPrompt], usable_s: float) -> Load:
        if self._sizes.workload is None or not prompts:
            return Load([], [])
        deadline_s = self._clock.now_s() + usable_s
        return engine.serve(
            prompts, self._sizes.workload, "load", deadline_s=deadline_s, tell=self._screen.tell
        )

    # ---- servers and time --------------------------------------------------------------------

    @contextmanager
    def _engine(self, name: str, transfer: dict[str, Any] | None, shape: Shape) -> Iterator[Engine]:
        started_s = self._clock.now_s()
        note = "" if self._start_s else " (the first start imports it, which takes the longest)"
        settings = self._settings(name, transfer, shape.device_blocks)
        with self._open_engine(settings, lambda news: self._screen.tell(news + note)) as engine:
            took_s = self._clock.now_s() - started_s
            self._start_s = took_s if self._start_s else FIRST_START_SHARE * took_s
            try:
                yield engine
            except BaseException:
                self._screen.tell("stopping vLLM")
                raise

    def _settings(self, name: str, transfer: dict[str, Any] | None, blocks: int) -> ServerSettings:
        return ServerSettings(
            model=self._model,
            device_blocks=blocks,
            log=self._output / f"{name}.log",
            kv_transfer=transfer,
            # One block is vLLM's own; a request has to fit into the others.
            max_model_len=min(8192, max(1, blocks - 1) * BLOCK_TOKENS),
        )

    def _choose(
        self,
        running: Shape,
        shapes: tuple[Shape, ...] = SHAPES,
        prompt_len: int | None = None,
    ) -> None:
        self._sizes = choose_sizes(
            self._speed,
            self._left_s(),
            start_s=self._start_s,
            running=running,
            shapes=shapes,
            prompt_len=prompt_len,
        )
        self._expect(PHASES)

    def _expect(self, phases: Sequence[str] | dict[str, str]) -> None:
        """Tell the screen how long the given coming phases should take."""
        starts_s = self._start_s * len([name for name in phases if name != "alone"])
        expected_s = starts_s + sum(getattr(self._costs, name) for name in phases)
        # What would end after the limit will be left out.
        self._screen.expect(min(expected_s, self._left_s() + self._limit_s - self._aim_s))

    @property
    def _costs(self) -> Costs:
        return costs(self._sizes, self._speed)

    @property
    def _check_s(self) -> float:
        """Return the expected seconds of a request whose prefix is in a tier."""
        if (load := self._sizes.workload) is None:
            return 0.0
        found_s = self._speed.hit_s(load.system_prompt_len + load.question_len, load.question_len)
        return found_s + self._sizes.output_len * self._speed.decode_s

    def _left_s(self) -> float:
        return self._began_s + self._aim_s - self._clock.now_s()

    def _fits(self, seconds: float) -> bool:
        """Return whether work that takes `seconds` ends before the limit."""
        return self._clock.now_s() + seconds <= self._began_s + self._limit_s


def chosen_text(speed: Speed, sizes: Sizes) -> str:
    """Return two lines: the measured speed and the sizes chosen for it."""
    per_s = 1000 / speed.prefill_s(1000)
    lines = [
        f"This machine computes {per_s:,.0f} prompt tokens a second and writes "
        f"{1 / max(speed.decode_s, 1e-6):,.0f}.",
        f"Chosen: one prompt of {sizes.prompt_len:,} tokens, answers of {sizes.output_len}",
    ]
    if (load := sizes.workload) is None:
        lines[1] += "; no time for a load of many prompts."
    else:
        lines[1] += (
            f"; a load of {load.groups} prefixes of {load.system_prompt_len:,} tokens with "
            f"{load.prompts_per_group} questions each, which needs "
            f"{load.working_set_ratio:.1f} times the device's {load.device_blocks} blocks."
        )
    return "\n".join(lines)


def first_of_each_group(prompts: Sequence[WorkloadPrompt]) -> list[WorkloadPrompt]:
    """Return the first request of every group, in the order they come."""
    seen: dict[int, WorkloadPrompt] = {}
    for prompt in prompts:
        seen.setdefault(prompt.group, prompt)
    return list(seen.values())


def drop_cached_pages(folder: Path) -> None:
    """Drop the files in `folder` from the page cache, so that they are read from disk."""
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(descriptor)  # only clean pages can be dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _ttft_text(answer: CompletionResult) -> str:
    return f"{answer.ttft_s:.2f} s to the first token"


def _gained(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {tier: count - before.get(tier, 0.0) for tier, count in after.items()}
