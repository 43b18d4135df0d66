"""The bytes, held against vLLM's own words for them where it is installed."""

import msgspec
import pytest

from kvtier.evictor.events import block_of, encode_removed, topic, wants_whole_hashes
from kvtier.evictor.layouts import StoreTree
from tests.evictor.scenes import FOREIGN, TREE, key_of

HASHES = [key_of(number)[:-4] for number in range(3)]
KEYS = [block_of(HASHES[0], 0), block_of(HASHES[1], 2), block_of(HASHES[2], 0)]


def encoded(*, whole: bool = False) -> bytes:
    return encode_removed(KEYS, "shared", 12.5, whole_hashes=whole)


def event(hashes: list[object], group: int) -> dict[str, object]:
    return {
        "type": "BlockRemoved",
        "block_hashes": hashes,
        "medium": "STORAGE",
        "group_idx": group,
        "locality": "REMOTE",
        "ownership": "shared",
    }


def test_the_bytes() -> None:
    numbers = [int.from_bytes(hashed[-8:], "big") for hashed in HASHES]
    assert msgspec.msgpack.decode(encoded()) == [
        12.5,
        [event([numbers[0], numbers[2]], 0), event([numbers[1]], 2)],
        0,
    ]
    whole = msgspec.msgpack.decode(encoded(whole=True))
    assert whole[1] == [event([HASHES[0], HASHES[2]], 0), event([HASHES[1]], 2)]


@pytest.mark.parametrize("whole", [False, True])
def test_vllm_decodes_them_and_would_write_them_alike(whole: bool) -> None:
    theirs = pytest.importorskip("vllm.distributed.kv_events")
    hashing = pytest.importorskip("vllm.v1.core.kv_cache_utils")
    batch = msgspec.msgpack.decode(encoded(whole=whole), type=theirs.KVEventBatch)
    assert (batch.ts, batch.data_parallel_rank) == (12.5, 0)
    assert [type(one) for one in batch.events] == [theirs.BlockRemoved] * 2
    shown = [list(HASHES) if whole else [hashing.maybe_convert_block_hash(one) for one in HASHES]]
    assert batch.events[0].block_hashes == [shown[0][0], shown[0][2]]
    assert batch.events[0].medium == theirs.MEDIUM_STORAGE
    assert (batch.events[1].block_hashes, batch.events[1].group_idx) == ([shown[0][1]], 2)
    assert msgspec.msgpack.encode(batch) == encoded(whole=whole)


def test_topics_tell_key_space_and_model() -> None:
    own = StoreTree(TREE, is_foreign=False)
    assert topic(own, "org/tiny") == f"kv@{TREE}@org/tiny".encode()
    assert (own.model, StoreTree(FOREIGN, is_foreign=True).model) == ("tiny", "org_model")


def test_hashes_are_as_short_as_vllms() -> None:
    assert not wants_whole_hashes({})
    assert not wants_whole_hashes({"VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "1"})
    assert wants_whole_hashes({"VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0"})
