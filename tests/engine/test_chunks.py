"""Tiers with chunks of several device blocks, in float32 and in bfloat16.

In bfloat16 even a device hit differs from the cold run, because the chunks of the prefill have
other shapes; a tier must answer as the device does.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Start

pytestmark = pytest.mark.slow

BLOCK = 128
SIZE = 800
TOKEN_BYTES = {"float32": 46_080, "bfloat16": 23_040}


# A CPU without AVX-512 computes bfloat16 very slowly: that prompt is short.
@pytest.mark.parametrize(
    ("dtype", "blocks_per_chunk", "size"),
    [
        ("float32", 2, SIZE),
        ("float32", 3, SIZE),
        ("bfloat16", 1, 400),
    ],
)
def test_chunks_from_ram_and_disk_answer_as_device_hit(
    start: Start,
    smollm2: Path,
    corpus: list[int],
    tmp_path: Path,
    dtype: str,
    blocks_per_chunk: int,
    size: int,
) -> None:
    ids = corpus[:size]
    whole = (size - 1) // BLOCK
    chunks = whole // blocks_per_chunk
    chunk_bytes = TOKEN_BYTES[dtype] * BLOCK * blocks_per_chunk
    settings: dict[str, Any] = {
        # Half of RAM may come up from the disk for a request.
        "ram": (2 * chunks + 2) * chunk_bytes,
        "disk": f"{tmp_path / 'disk'}=512MiB",
        "blocks_per_chunk": blocks_per_chunk,
    }
    with start(smollm2, settings, dtype=dtype) as engine:

        def hits() -> dict[str, int]:
            counted = engine.counters()
            return {tier: counted[tier]["hit_blocks"] for tier in ("ram", "disk")}

        cold = engine.ask(ids)
        # The device holds all of the prompt's whole blocks.
        device = engine.ask(ids)
        assert (device.cached, hits()) == (whole * BLOCK, {"ram": 0, "disk": 0})
        assert engine.call("reset")
        ram = engine.ask(ids)
        assert (ram.cached, hits()) == (
            chunks * blocks_per_chunk * BLOCK,
            {"ram": chunks, "disk": 0},
        )
        engine.call("settle")
        # Other prompts push the chunks out of RAM; the disk has room for all.
        for place in range(10_000, 25_000, 5_000):
            engine.ask(corpus[place : place + size], max_tokens=1)
        engine.call("settle")
        assert engine.counters()["ram"]["evicted_blocks"] >= chunks
        assert engine.call("reset")
        before = hits()
        disk = engine.ask(ids)
        assert disk.cached == ram.cached
        assert hits() == {"ram": before["ram"], "disk": before["disk"] + chunks}
        assert ram.tokens == disk.tokens
        if dtype == "float32":
            assert cold.tokens == device.tokens == ram.tokens
        elif device.cached == ram.cached:
            assert device.tokens == ram.tokens
        engine.call("break_loads", groups=engine.call("groups"))
        assert engine.call("reset")
        assert engine.ask(ids).tokens != ram.tokens
        engine.call("check")
