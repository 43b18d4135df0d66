"""The precise index follows a real engine and knows which tiers hold a prefix."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.index.fleet.prompt import TokenPrompt
from kvtier.router.learn.events import EventStream
from kvtier.router.learn.learner import ReplicaSink
from tests.engine.conftest import MADE_UP, Start

pytestmark = pytest.mark.slow

BLOCK = 128
SIZE = 5 * BLOCK + 10


@pytest.mark.parametrize("has_tokens", [True, False])
def test_precise_index_knows_prefix_in_every_tier(
    start: Start,
    made_up: Callable[[str], Path],
    noise: list[int],
    tmp_path: Path,
    has_tokens: bool,
) -> None:
    endpoint = f"ipc://{tmp_path / 'socket'}"
    settings = {
        "ram": "1536KiB",
        "disk": f"{tmp_path / 'disk'}=4MiB",
        "self_describing_kv_events": has_tokens,
    }
    index = PreciseIndex()
    index.add("a", "m")
    # The engine's first events may find no subscriber yet; the replay socket has them.
    stream = EventStream(endpoint, ReplicaSink(index, "a"), replay=f"{endpoint}-replay")

    async def run() -> None:
        following = asyncio.create_task(stream.follow())
        with start(made_up("llama"), settings, events=endpoint, **MADE_UP) as engine:
            known: dict[str, int] = {}
            for _ in range(20):
                await asyncio.to_thread(engine.ask, noise[:SIZE], max_tokens=1)
                await asyncio.to_thread(engine.call, "settle")
                await asyncio.sleep(0.1)
                known = dict(index.match(TokenPrompt(noise[:SIZE], "m"), ["a"])[0].tokens)
                if known.get("disk") == 5 * BLOCK:
                    break
            assert known == {DEVICE: 5 * BLOCK, "ram": 5 * BLOCK, "disk": 5 * BLOCK}
            byte = index._replicas["a"].held
            assert byte is not None
            assert all(held == 0b111 for held in byte._held[:5])
            other = TokenPrompt([*noise[: 2 * BLOCK], *noise[:BLOCK]], "m")
            assert index.match(other, ["a"])[0].best_tokens == 2 * BLOCK
            counts = stream.counts
            assert (counts.bad_messages, counts.bad_events, counts.resyncs) == (0, 0, 0)
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following

    asyncio.run(run())
