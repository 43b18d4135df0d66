from typing import Any

from kvtier.index.fleet.events import (
    BlocksRemoved,
    BlocksStored,
    DeviceCleared,
    block_name,
    split_event,
)


def test_a_name_is_the_same_as_a_number_or_as_bytes() -> None:
    whole = bytes(range(32))
    number = int.from_bytes(whole, "big") & (1 << 64) - 1  # as vLLM shortens it
    assert block_name(whole) == block_name(number) < 1 << 60
    assert block_name(whole[:31] + b"\0") != block_name(whole)


def test_anything_has_a_name() -> None:
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


def test_a_large_change_is_the_same_in_parts() -> None:
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


def test_names_alone_are_divided_and_what_fits_or_does_not_fit_together_is_not() -> None:
    gone = BlocksRemoved(names=[1, 2, 3], tier="ram", group=4)
    assert [(part.names, part.group) for part in split_event(gone, 2)] == [([1, 2], 4), ([3], 4)]
    silent = stored(3, token_ids=[], extra_keys=None)
    assert [part.names for part in split_event(silent, 2)] == [[1, 2], [3]]
    for whole in (DeviceCleared(), stored(2), stored(3, token_ids=[1])):
        assert list(split_event(whole, 2)) == [whole]
