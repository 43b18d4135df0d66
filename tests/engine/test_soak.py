"""An engine under pressure for minutes: no error, no wrong answer, no growth of memory.

Requests that share prefixes come and go, four at a time. The device, RAM and disk are all too
small for them; some requests are aborted, some preempted, and now and then the device's cache is
reset. A run lasts until its time is over and everything that it must bring about has happened
(`seen`), however long the machine takes for that. `make test-all` asks for one minute, `make
soak` for thirty.
"""

import itertools
import os
import random
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.engine.conftest import Start
from tests.engine.engine import Engine

BLOCK = 128
TOKENS = 16
FAMILIES = 8
CONCURRENT = 4
# Where the two best tokens are closer than this, the shape of the batch may decide.
CLEAR_GAP = 1e-2
GROWTH_BYTES = 8 << 20
WINDOWS = 8
SAMPLE_EVERY_S = 1.0
PERIODS = 3
"""How often the same requests may run: memory that they need once has been taken then."""
DISK_BYTES = 320 << 20
ENGINE = {"max_model_len": 2_048, "max_num_batched_tokens": 256}
# Torch keeps a kernel for up to a thousand shapes, which would look like a leak.
ENV = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32"}


class Request(NamedTuple):
    ids: list[int]
    answer: list[int]
    """The tokens of vLLM alone."""


class Run(NamedTuple):
    """What happened in one period."""

    finished: int
    aborted: int
    rss: list[int]
    """Bytes, one sample every SAMPLE_EVERY_S."""


def prompts(corpus: list[int]) -> list[list[int]]:
    """Return prefixes of 2 to 9 blocks, each with three endings just short of whole blocks."""
    rows = []
    for family in range(FAMILIES):
        prefix = corpus[3_000 * family :][: (2 + family) * BLOCK]
        for ending, size in enumerate((118, 246, 374)):
            rows.append(prefix + corpus[3_000 * family + 1_500 + 400 * ending :][:size])
    return rows


@pytest.fixture(scope="module")
def requests(start: Start, smollm2: Path, corpus: list[int]) -> list[Request]:
    """The requests with a clear answer, given by vLLM alone, one at a time."""
    found = []
    with start(smollm2, None, device_blocks=200, **ENGINE) as engine:
        for ids in prompts(corpus):
            answer = engine.ask(ids, max_tokens=TOKENS, logprobs=2)
            assert answer.logprobs is not None
            best = [sorted(position.values())[-2:] for position in answer.logprobs]
            if min(high - low for low, high in best) > CLEAR_GAP:
                found.append(Request(ids, answer.tokens))
    assert len(found) > 2 * FAMILIES, "most prompts have a clear answer"
    return found


def pressure(engine: Engine, requests: list[Request], minutes: float) -> Run:
    """Keep the engine busy and compare every answer."""
    drawn = random.Random(0)
    running: dict[str, tuple[Request, int]] = {}
    rss: list[int] = []
    number = finished = aborted = 0
    started_s = time.monotonic()
    sample_s = 0.0
    is_over = False
    while True:
        now_s = time.monotonic() - started_s
        is_over = is_over or (now_s >= 60 * minutes and aborted > 0 and seen(engine))
        if is_over and not running:
            break
        while len(running) < CONCURRENT and not is_over:
            request, count = drawn.choice(requests), drawn.randint(1, TOKENS)
            running[str(number)] = request, count
            engine.add(str(number), request.ids, count)
            number += 1
        if drawn.random() < 0.01:
            engine.call("reset", running=False)
        if drawn.random() < 0.05:
            gone = drawn.choice(list(running))
            engine.call("abort", requests=[gone])
            del running[gone]
            aborted += 1
        for name, answer in engine.step(4).items():
            request, count = running.pop(name)
            assert answer.tokens == request.answer[:count], f"request {name} of {number}"
            finished += 1
        if now_s >= sample_s:
            sample_s = now_s + SAMPLE_EVERY_S
            rss.append(engine.call("rss_bytes"))
    return Run(finished, aborted, rss)


def seen(engine: Engine) -> bool:
    """Return whether requests were preempted and both tiers hit and overflowed."""
    counted = engine.counters()
    return engine.call("metrics")["vllm:num_preemptions_total"] > 0 and all(
        counted[tier][what] > 0
        for tier in ("ram", "disk")
        for what in ("hit_blocks", "evicted_blocks")
    )


def growth_bytes(samples: list[int]) -> float:
    """Return the steady growth over the second half of the run.

    A leak grows in every window to the end. A buffer for a rare batch shape is one step, and a
    slow machine still warms up when the second half begins; the median over the later windows
    ignores both.
    """
    half = samples[len(samples) // 2 :]
    edges = [len(half) * window // WINDOWS for window in range(WINDOWS + 1)]
    levels = [statistics.median(half[low:high]) for low, high in itertools.pairwise(edges)]
    steps = [after - before for before, after in itertools.pairwise(levels)]
    return statistics.median(steps[len(steps) // 2 :]) * WINDOWS


def soak(start: Start, model: Path, requests: list[Request], folder: Path, minutes: float) -> None:
    disk = folder / "disk"
    settings = {"ram": "160MiB", "disk": f"{disk}={DISK_BYTES}"}
    with start(model, settings, device_blocks=20, env=ENV, **ENGINE) as engine:
        for _ in range(PERIODS):
            run = pressure(engine, requests, minutes)
            if growth_bytes(run.rss) < GROWTH_BYTES:
                break  # a leak grows in every period, an engine that warms up does not
        engine.call("settle")
        engine.call("check")
        counted, preempted = engine.counters(), engine.call("metrics")
    print(
        f"\n{minutes:g} min: {run.finished} answered, {run.aborted} aborted, "
        f"{preempted['vllm:num_preemptions_total']:g} preempted, "
        f"grew {growth_bytes(run.rss) / 2**20:.1f} MiB, {counted}"
    )
    for tier in ("ram", "disk"):
        assert counted[tier]["corrupt_blocks"] == counted[tier]["fault_blocks"] == 0
        assert counted[tier]["resident"] <= counted[tier]["capacity"]
    assert sum(file.stat().st_blocks * 512 for file in disk.iterdir()) <= DISK_BYTES
    assert growth_bytes(run.rss) < GROWTH_BYTES


def minutes(default: float) -> float:
    return float(os.environ.get("KVTIER_SOAK_MINUTES") or default)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_engine_under_pressure_for_a_minute_answers_right_and_does_not_grow(
    start: Start, smollm2: Path, requests: list[Request], tmp_path: Path
) -> None:
    soak(start, smollm2, requests, tmp_path, minutes(1))


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_engine_under_pressure_for_half_an_hour_answers_right_and_does_not_grow(
    start: Start, smollm2: Path, requests: list[Request], tmp_path: Path
) -> None:
    soak(start, smollm2, requests, tmp_path, minutes(30))


def test_growth_bytes_sees_a_leak_and_no_step() -> None:
    flat = [10**9 + at % 3 for at in range(100)]
    stepped = [10**9 + (at > 70) * 2**25 for at in range(100)]
    warming = [10**9 + min(at, 75) * 2**20 for at in range(100)]
    leaking = [10**9 + at * 2**20 for at in range(100)]
    assert abs(growth_bytes(flat)) < 2**10
    assert growth_bytes(stepped) == 0
    assert growth_bytes(warming) == 0
    assert growth_bytes(leaking) == pytest.approx(50 * 2**20, rel=0.05)
