"""The sizes of the demo's prompts, questions and answers for the time that it may take.

The same work takes 20 times longer on one machine than on another, so the demo measures how fast
the engine computes and gets the largest sizes that fit. Everything here is arithmetic on measured
seconds; nothing waits or reads a clock.

Prefill is modelled as `a * tokens + b * tokens ** 2`, because attention grows with the square of
the length. The estimates are meant to be high: a run that ends early is welcome, and one that
turns out slower than planned is cut by the demo, which plans again after every phase.
"""

from itertools import product
from typing import NamedTuple, Self

import msgspec

from kvtier_bench.workload import Workload

AIM_S = 240.0
"""Seconds in which the demo should end: the sizes are chosen for it."""
LIMIT_S = 285.0
"""Seconds after which nothing may end: a phase that would is skipped."""

BLOCK_TOKENS = 128
CONCURRENCY = 2
PRESSURE = 1.7
"""The prefixes of a workload need this many times the device's cache."""

KNEE_TOKENS = 1000
"""Tokens at which attention is assumed to cost as much as the rest, until measured."""
HIT_S = 0.1
"""Seconds that a hit on any tier adds."""
SETTLE_S = 2.0
"""Time in which the last request's blocks reach every tier."""
STOP_S = 2.0
COMPUTED_SHARE = 0.85
"""Largest share of the requests whose prefix vLLM alone computes again."""
LOAD_MARGIN = 1.25
"""Factor by which the machine may slow down and still finish the load."""
OVERLAP = 0.7
"""Time per output token of requests that run together, as a share of that of one alone."""
LONGEST_PREFILL_S = 12.0
PROMPT_SHARE = 0.08
"""Share of the remaining time that computing the longest prompt once may take."""

WARM_UP_S = 6.0
"""A longer warm-up is skipped: its effect is small on such a slow machine."""
LEAST_OUTPUT = 3

PROMPT_LENGTHS = (5120, 4096, 3072, 2048, 1536, 1024, 768, 512, 384, 256, 128)


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """The speed of an engine: seconds for a prompt's tokens and for a token of output."""

    linear_s: float
    square_s: float
    decode_s: float

    @classmethod
    def measured(cls, tokens: int, ttft_s: float, decode_s: float) -> Self:
        """Return the speed after one prompt, with an assumption about longer ones."""
        linear_s = ttft_s / (tokens * (1 + tokens / KNEE_TOKENS))
        return cls(linear_s=linear_s, square_s=linear_s / KNEE_TOKENS, decode_s=decode_s)

    def refined(self, tokens: int, longer: int, ttft_s: float) -> Self:
        """Return the speed that passes through its own estimate at `tokens` and a longer prompt.

        Where no curve that rises ever faster does, the longer prompt alone counts.
        """
        if longer <= tokens:
            return self
        short_s, long_s = self.prefill_s(tokens) / tokens, ttft_s / longer
        square_s = (long_s - short_s) / (longer - tokens)
        linear_s = short_s - square_s * tokens
        if square_s < 0:
            linear_s, square_s = long_s, 0.0
        elif linear_s < 0:
            linear_s, square_s = 0.0, long_s / longer
        return msgspec.structs.replace(self, linear_s=linear_s, square_s=square_s)

    def prefill_s(self, tokens: int) -> float:
        """Return the seconds to the first token of a prompt with nothing cached."""
        return tokens * (self.linear_s + tokens * self.square_s)

    def hit_s(self, tokens: int, question_len: int) -> float:
        """Return the seconds to the first token with all but the last prefix block cached."""
        return HIT_S + min(self.prefill_s(tokens), self.prefill_s(question_len + BLOCK_TOKENS))


class Shape(NamedTuple):
    """A workload without its numbers of questions and tokens of output."""

    prefix_len: int
    groups: int
    question_len: int

    def workload(self, questions: int, output_len: int) -> Workload:
        """Return the workload; the device cache is sized by the shape alone."""
        whole = Workload(
            name=f"demo-{self.prefix_len}",
            title=f"{self.groups} prefixes of {self.prefix_len} tokens, {questions} questions each",
            groups=self.groups,
            system_prompt_len=self.prefix_len,
            question_len=self.question_len,
            prompts_per_group=questions,
            output_len=output_len,
            concurrency=CONCURRENCY,
            block_tokens=BLOCK_TOKENS,
            device_blocks=1,
        )
        return msgspec.structs.replace(whole, device_blocks=self.device_blocks)

    @property
    def device_blocks(self) -> int:
        """Blocks of device cache that the prefixes overflow, and that requests in flight fit."""
        prefix = self.prefix_len // BLOCK_TOKENS
        in_flight = CONCURRENCY * (prefix + 1)
        overflown = (self.groups * prefix + CONCURRENCY) / PRESSURE
        return max(round(overflown), in_flight + 2)  # vLLM keeps one block for itself

    @property
    def longest_prompt(self) -> int:
        """Prefix tokens of a single prompt that fits the device cache with its answer."""
        return (self.device_blocks - 3) * BLOCK_TOKENS


SHAPES = (
    Shape(2048, 5, 48),
    Shape(1024, 6, 48),
    Shape(512, 5, 24),
    Shape(256, 5, 24),
)
"""Shapes from a fast machine's to a slow one's."""
QUESTIONS_AND_OUTPUT = ((6, 24), (5, 24), (4, 24), (4, 16), (4, 8))
LEAST_QUESTIONS_AND_OUTPUT = ((3, 8), (3, 4), (2, 3))
"""Questions and output tokens for a machine on which no shape fits with more."""


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a demo."""

    shape: Shape
    prompt_len: int
    """Prefix tokens of the prompt that is computed once and then found in every tier."""
    output_len: int
    workload: Workload | None
    """The load of the throughput table; None where there is no time for it."""
    checks: int
    """Further prompts, of the workload, whose answers are compared between tiers."""

    @property
    def prompt(self) -> Workload:
        """The one prompt as a workload of a single request."""
        one = self.shape._replace(prefix_len=self.prompt_len, groups=1)
        return one.workload(questions=1, output_len=self.output_len)

    @property
    def warm_up_len(self) -> int:
        """Tokens of the prompt that a server answers before anything is timed."""
        return BLOCK_TOKENS + self.shape.question_len


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Expected seconds of each phase, without its server's start, and of its load alone."""

    alone: float
    tiers: float
    restarted: float
    shared: float
    alone_load: float
    tiers_load: float

    @property
    def total(self) -> float:
        """Expected seconds of all phases together."""
        return self.alone + self.tiers + self.restarted + self.shared


def costs(sizes: Sizes, speed: Speed) -> Costs:
    """Return the expected seconds of the phases of a demo of these sizes."""
    decode = sizes.output_len * speed.decode_s
    question_len = sizes.shape.question_len
    prompt_len = sizes.prompt_len + question_len
    cold = speed.prefill_s(prompt_len) + decode
    hit = speed.hit_s(prompt_len, question_len) + decode
    warm_up = warm_up_s(sizes, speed)
    alone_load = tiers_load = check = 0.0
    if (load := sizes.workload) is not None:
        length = load.system_prompt_len + load.question_len
        computed, found = speed.prefill_s(length), speed.hit_s(length, load.question_len)
        again = load.requests - load.groups
        alone_load = load.requests * (COMPUTED_SHARE * computed + OVERLAP * decode)
        tiers_load = load.groups * computed + again * found + load.requests * OVERLAP * decode
        check = found + decode
    alone_load, tiers_load = LOAD_MARGIN * alone_load, LOAD_MARGIN * tiers_load
    checks = sizes.checks * check
    return Costs(
        alone=cold + alone_load + STOP_S,
        # Cold, on the device and in RAM; each check twice on the device and once in RAM.
        tiers=warm_up + cold + 2 * hit + tiers_load + 3 * checks + 3 * SETTLE_S + STOP_S,
        restarted=warm_up + hit + checks + SETTLE_S + STOP_S,
        shared=warm_up + hit + checks + SETTLE_S + STOP_S,
        alone_load=alone_load,
        tiers_load=tiers_load,
    )


def warm_up_s(sizes: Sizes, speed: Speed) -> float:
    """Return the expected seconds of a server's warm-up; 0 where there is none."""
    expected = 2 * (speed.prefill_s(sizes.warm_up_len) + speed.decode_s)
    return expected if expected <= WARM_UP_S else 0.0


def choose_sizes(
    speed: Speed,
    left_s: float,
    *,
    start_s: float,
    running: Shape,
    shapes: tuple[Shape, ...] = SHAPES,
    prompt_len: int | None = None,
) -> Sizes:
    """Return the largest sizes whose phases fit into `left_s`, starts of servers included.

    Three servers are still to be started, at `start_s` each, and one more where the shape is not
    the one `running` was started for. `prompt_len` is that of a prompt already met. Where no load
    fits, one prompt remains, with as long an answer as there is time for, and with the shortest
    where there is none.
    """
    left_s -= 3 * start_s
    for offered in (QUESTIONS_AND_OUTPUT, LEAST_QUESTIONS_AND_OUTPUT):
        for shape, (questions, output_len), checks in product(shapes, offered, (3, 1)):
            usable_s = left_s - (0.0 if shape == running else start_s + STOP_S)
            sizes = Sizes(
                shape=shape,
                prompt_len=prompt_len or _prompt_len(speed, usable_s, shape),
                output_len=output_len,
                workload=shape.workload(questions, output_len),
                checks=checks,
            )
            if costs(sizes, speed).total <= usable_s:
                return sizes
    return _one_prompt(speed, left_s, running, prompt_len)


def _one_prompt(speed: Speed, left_s: float, shape: Shape, prompt_len: int | None) -> Sizes:
    sizes = Sizes(
        shape=shape,
        prompt_len=prompt_len or _prompt_len(speed, left_s, shape),
        output_len=24,
        workload=None,
        checks=0,
    )
    while sizes.output_len > LEAST_OUTPUT and costs(sizes, speed).total > left_s:
        sizes = msgspec.structs.replace(sizes, output_len=sizes.output_len // 2)
    return sizes


def _prompt_len(speed: Speed, left_s: float, shape: Shape) -> int:
    bound_s = min(LONGEST_PREFILL_S, PROMPT_SHARE * left_s)
    fitting = [length for length in PROMPT_LENGTHS if length <= shape.longest_prompt]
    quick = [length for length in fitting if speed.prefill_s(length) <= bound_s]
    return max(quick, default=min(fitting))


def first_shape(dtype: str) -> Shape:
    """Return the shape to start with before anything is measured.

    A CPU that cannot compute bfloat16 natively is slow.
    """
    return SHAPES[2] if dtype == "float32" else SHAPES[0]
