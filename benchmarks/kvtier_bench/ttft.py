"""Time to first token by where the prefix is: nowhere, on the device, in RAM, or in a lower tier.

The first engine answers each prompt three times: cold, from the device, and from RAM after the
device's cache was emptied. A second engine answers each prompt from disk, after the page cache was
dropped, and then from the device, so that a disk hit is compared with a device hit of the same
process. A third engine, which has no disk tier, does the same with the shared folder that the first
engine wrote to. Lengths and repeats are interleaved, and one request is in flight at a time.
"""

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from kvtier.clock import Clock, MonotonicClock
from kvtier_bench.client import CompletionResult, complete
from kvtier_bench.engine import warm_up
from kvtier_bench.lineup import RAM_BYTES, kvtier_transfer
from kvtier_bench.progress import Steps
from kvtier_bench.rows import Row, Target, measured
from kvtier_bench.server import Server, ServerSettings
from kvtier_bench.verdict import spread_text
from kvtier_bench.workload import Encode, distinct_prompts

LENGTHS = (1700, 5300)
DEVICE_BLOCKS = 100
OUTPUT_LEN = 8
SETTLE_S = 1.0
"""Time for a prompt's saves to reach the lowest tier before the device's cache is emptied."""

TARGETS = {
    ("ram", 5300): Target("<=", 1.3),
    ("disk", 5300): Target("<=", 2.0),
    ("shared", 5300): Target("<=", 2.0),
}
COLD_OVER_RAM = {5300: Target(">=", 15.0)}

PAGE_CACHE = Path("/proc/sys/vm/drop_caches")

Samples = dict[tuple[int, str], list[CompletionResult]]
"""Answers by prompt length and state. The first engine has the states `cold`, `device` and `ram`;
the engines that are started later have `disk` and `shared`, and `device-after-disk` and
`device-after-shared` for the device hits in the same process."""


def measure_ttft(
    model: Path,
    encode: Encode,
    steps: Steps,
    *,
    repeats: int,
    scratch: Path,
    clock: Clock | None = None,
) -> tuple[list[Row], dict[str, Any]]:
    """Return rows and details. Starts three servers and takes about 16 s for each repeat."""
    clock = clock or MonotonicClock()
    scratch.mkdir(parents=True, exist_ok=True)
    lengths = [length for _ in range(repeats) for length in LENGTHS]
    prompts = distinct_prompts(encode, lengths)
    samples: Samples = {}
    dropped = True
    with tempfile.TemporaryDirectory(dir=scratch, prefix="ttft-") as folder:
        disk, shared = Path(folder).resolve() / "disk", Path(folder).resolve() / "shared"
        settings = ServerSettings(
            model=model,
            device_blocks=DEVICE_BLOCKS,
            log=scratch / "ttft.log",
            kv_transfer=kvtier_transfer(RAM_BYTES, disk, shared=shared),
        )
        later = {
            "disk": kvtier_transfer(RAM_BYTES, disk),
            "shared": kvtier_transfer(RAM_BYTES, shared=shared),
        }
        with steps.step("TTFT cold, device hit, RAM hit"), Server(settings) as server:
            server.start(steps.tell)
            warm_up(server, encode)
            for index, prompt in enumerate(prompts):
                steps.tell(f"prompt {index + 1} of {len(prompts)}")
                _sample_first_process(server, prompt, samples, clock)
        for state, kv_transfer in later.items():
            changed = msgspec.structs.replace(
                settings, log=scratch / f"ttft-{state}.log", kv_transfer=kv_transfer
            )
            with steps.step(f"TTFT {state} hit in a new process"), Server(changed) as server:
                server.start(steps.tell)
                warm_up(server, encode)
                for index, prompt in enumerate(prompts):
                    steps.tell(f"prompt {index + 1} of {len(prompts)}")
                    dropped = drop_page_cache() and dropped
                    _sample(server, prompt, state, samples)
                    _sample(server, prompt, f"device-after-{state}", samples)
    return ttft_rows(samples, page_cache_dropped=dropped), _details(samples)


def _sample_first_process(
    server: Server, prompt: list[int], samples: Samples, clock: Clock
) -> None:
    _sample(server, prompt, "cold", samples)
    _sample(server, prompt, "device", samples)
    clock.sleep(SETTLE_S)
    server.reset_device()
    _sample(server, prompt, "ram", samples)


def _sample(server: Server, prompt: list[int], state: str, samples: Samples) -> None:
    answer = complete(server.endpoint, prompt, OUTPUT_LEN, salt="ttft")
    samples.setdefault((len(prompt), state), []).append(answer)


def drop_page_cache() -> bool:
    """Drop clean pages, so that reads reach the disk; return False if that is not permitted."""
    os.sync()
    try:
        PAGE_CACHE.write_text("3")
    except OSError:
        return False
    return True


def ttft_rows(samples: Samples, *, page_cache_dropped: bool) -> list[Row]:
    """Return median times, their ratios, and the number of answers that depend on the tier."""
    rows: list[Row] = []
    for length in sorted({length for length, _ in samples}):
        medians = {
            state: statistics.median(each.ttft_s for each in answers)
            for (size, state), answers in samples.items()
            if size == length
        }
        rows += _state_rows(length, medians, samples, page_cache_dropped=page_cache_dropped)
        rows.append(
            measured(
                f"ttft/{length}/cold_over_ram",
                medians["cold"],
                "s",
                reference=medians["ram"],
                target=COLD_OVER_RAM.get(length),
            )
        )
        rows.append(_agreement_row(length, samples))
    return rows


def _state_rows(
    length: int, medians: dict[str, float], samples: Samples, *, page_cache_dropped: bool
) -> list[Row]:
    rows = []
    for state, reference in [
        ("cold", "device"),
        ("device", None),
        ("ram", "device"),
        ("disk", "device-after-disk"),
        ("shared", "device-after-shared"),
    ]:
        note = spread_text([each.ttft_s for each in samples[length, state]])
        note += "; cached " + spread_text(
            [each.cached_tokens / each.prompt_tokens for each in samples[length, state]]
        )
        if state in ("disk", "shared") and not page_cache_dropped:
            note += "; page cache NOT dropped (needs root): not a true disk read"
        rows.append(
            measured(
                f"ttft/{length}/{state}",
                medians[state],
                "s",
                reference=medians[reference] if reference else None,
                target=TARGETS.get((state, length)),
                note=note,
            )
        )
    return rows


def _agreement_row(length: int, samples: Samples) -> Row:
    device = samples[length, "device"]
    different = sum(
        hit.text != on_device.text
        for state in ("ram", "disk", "shared")
        for hit, on_device in zip(samples[length, state], device, strict=True)
    )
    return measured(
        f"ttft/{length}/outputs_different",
        different,
        "requests",
        target=Target("<=", 0),
        note=f"RAM, disk and shared hits against the device hit, of {3 * len(device)}",
    )


def _details(samples: Samples) -> dict[str, Any]:
    return {
        f"{length}/{state}": [round(each.ttft_s, 5) for each in answers]
        for (length, state), answers in samples.items()
    }
