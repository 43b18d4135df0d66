from typing import Any

from kvtier.index.fleet.events import (
    BlocksRemoved,
    BlocksStored,
    DeviceCleared,
    block_name,
    split_event,
)


def test_block_name_is_the_same_for_number_and_bytes() -> None:
    whole = bytes(range(32))
    number = int.from_bytes(whole, "big") & (1 << 64) - 1  # vLLM shortens it like this
    assert block_name(whole) == block_name(number) < 1 << 60
    assert block_name(whole[:31] + b"\0") != block_name(whole)


def test_block_name_accepts_any_hash() -> None:
    for engine_hash in (b"", b"\xff", -1, 0, 1 << 64, -(1 << 63)):
        assert 0 <= block_name(engine_hash) < 1 << 60


def stored(count: int, **fields: Any) -> BlocksStored:
    made: dict[str, Any] = {
        "names": list(range(1, count + 1)),
        "parent": 99,
        "token_ids": list(range(2 * count)),
        "block_tokens": 2,
        "tier": "device",
        "adapter": "sql",
        "extra_keys": [["sql", number] for number in range(count)],
    }
    return BlocksStored(**made | fields)


def test_split_event_keeps_content() -> None:
    parts = list(split_event(stored(5), 2))
    assert [part.names for part in parts] == [[1, 2], [3, 4], [5]]
    assert [part.parent for part in parts] == [99, 2, 4]
    assert [part.token_ids for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [part.extra_keys for part in parts] == [
        [["sql", 0], ["sql", 1]],
        [["sql", 2], ["sql", 3]],
        [["sql", 4]],
    ]
    assert {part.adapter for part in parts} == {"sql"}


def test_split_event_splits_names_and_keeps_small_or_malformed_events() -> None:
    gone = BlocksRemoved(names=[1, 2, 3], tier="ram", group=4)
    assert [(part.names, part.group) for part in split_event(gone, 2)] == [([1, 2], 4), ([3], 4)]
    silent = stored(3, token_ids=[], extra_keys=None)
    assert [part.names for part in split_event(silent, 2)] == [[1, 2], [3]]
    for whole in (DeviceCleared(), stored(2), stored(3, token_ids=[1])):
        assert list(split_event(whole, 2)) == [whole]
