"""The events of vLLM's own block pool, compared with the prefixes that the pool finds."""

from typing import Any

import msgspec
import pytest

from kvtier.index.fleet.precise import PreciseIndex
from kvtier.index.fleet.prompt import TokenPrompt
from kvtier.router.learn.wire import decode

pytestmark = pytest.mark.engine
pools = pytest.importorskip("vllm.v1.core.block_pool")
kv_events = pytest.importorskip("vllm.distributed.kv_events")

HASHED = 16
"""The tokens per hash; blocks may be larger."""


class Asked:
    """The fields of a request that the pool reads."""

    request_id = "r"
    lora_request = session_id = cache_salt = prompt_embeds = None
    mm_features = ()

    def __init__(self, tokens: list[int]) -> None:
        self.all_token_ids = tokens
        self.num_tokens = len(tokens)
        ends = range(HASHED, len(tokens) + 1, HASHED)
        self.block_hashes = [
            (hash(tuple(tokens[:end])) % 2**63).to_bytes(32, "big") for end in ends
        ]


class Engine:
    """A pool and an index that receives all of its events."""

    def __init__(self, blocks: int) -> None:
        self.pool: Any = pools.BlockPool(
            num_gpu_blocks=blocks + 1,  # vLLM reserves one block
            enable_caching=True,
            hash_block_size=HASHED,
            enable_kv_cache_events=True,
        )
        self.index = PreciseIndex()
        self.index.add("a", "m")
        self.index.begin("a")

    def compute(self, asked: Asked, block_tokens: int = HASHED) -> list[Any]:
        """Store the blocks of a prompt, although the pool may have copies of them."""
        count = len(asked.all_token_ids) // block_tokens
        blocks: list[Any] = self.pool.get_new_blocks(count)
        self.pool.cache_full_blocks(asked, blocks, 0, count, block_tokens, 0)
        return blocks

    def known(self, asked: Asked) -> int:
        """Return the tokens that the index finds after it has applied all events."""
        events = self.pool.take_events()
        for event in events:
            if isinstance(event, kv_events.BlockStored):
                event.kv_cache_spec_kind = "full_attention"
        batch = decode(msgspec.msgpack.encode(kv_events.KVEventBatch(ts=1.0, events=events)))
        assert batch is not None
        assert not batch.bad_events
        self.index.apply("a", batch.events)
        return self.index.match(TokenPrompt(asked.all_token_ids, "m"), ["a"])[0].best_tokens

    def finds(self, asked: Asked) -> bool:
        return all(self.pool.get_cached_block(one, [0]) for one in asked.block_hashes)


def test_prefix_stored_twice_stays_until_both_copies_are_removed() -> None:
    engine = Engine(16)
    asked = Asked(list(range(64)))
    first, second = engine.compute(asked), engine.compute(asked)
    assert engine.known(asked) == 64
    engine.pool.free_blocks(reversed(second))
    engine.pool.get_new_blocks(12)
    assert engine.finds(asked)
    assert engine.known(asked) == 64
    engine.pool.free_blocks(reversed(first))
    engine.pool.get_new_blocks(4)
    assert not engine.finds(asked)
    assert engine.known(asked) == 0


def test_short_tail_does_not_set_block_size() -> None:
    engine = Engine(16)
    (block,) = engine.pool.get_new_blocks(1)
    engine.pool.cache_partial_block(Asked(list(range(500, 540))), block, 32, 0, 64)
    whole = Asked(list(range(256)))
    engine.compute(whole, 64)
    assert engine.known(whole) == 256
