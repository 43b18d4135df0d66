"""The encoding of events, compared with that of vLLM if it is installed."""

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


def test_encode_removed_groups_hashes() -> None:
    numbers = [int.from_bytes(hashed[-8:], "big") for hashed in HASHES]
    assert msgspec.msgpack.decode(encoded()) == [
        12.5,
        [event([numbers[0], numbers[2]], 0), event([numbers[1]], 2)],
        0,
    ]
    whole = msgspec.msgpack.decode(encoded(whole=True))
    assert whole[1] == [event([HASHES[0], HASHES[2]], 0), event([HASHES[1]], 2)]


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_encoded_events_match_vllm(whole: bool) -> None:
    vllm_events = pytest.importorskip("vllm.distributed.kv_events")
    hashing = pytest.importorskip("vllm.v1.core.kv_cache_utils")
    batch = msgspec.msgpack.decode(encoded(whole=whole), type=vllm_events.KVEventBatch)
    assert (batch.ts, batch.data_parallel_rank) == (12.5, 0)
    assert [type(one) for one in batch.events] == [vllm_events.BlockRemoved] * 2
    shown = [list(HASHES) if whole else [hashing.maybe_convert_block_hash(one) for one in HASHES]]
    assert batch.events[0].block_hashes == [shown[0][0], shown[0][2]]
    assert batch.events[0].medium == vllm_events.MEDIUM_STORAGE
    assert (batch.events[1].block_hashes, batch.events[1].group_idx) == ([shown[0][1]], 2)
    assert msgspec.msgpack.encode(batch) == encoded(whole=whole)


def test_topic_contains_folder_and_model() -> None:
    own = StoreTree(TREE, is_foreign=False)
    assert topic(own, "org/tiny") == f"kv@{TREE}@org/tiny".encode()
    assert (own.model, StoreTree(FOREIGN, is_foreign=True).model) == ("tiny", "org_model")


def test_hash_form_follows_vllm_variable() -> None:
    assert not wants_whole_hashes({})
    assert not wants_whole_hashes({"VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "1"})
    assert wants_whole_hashes({"VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0"})
