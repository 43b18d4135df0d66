import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvtier.evictor.listing import Measured, files, outside, top_names, with_prefix
from kvtier.testing.memory_store import MemoryStore
from kvtier.tiers.shared.posix import PosixStore
from kvtier.tiers.shared.store import Store


def random_names() -> list[str]:
    chance = random.Random(4)
    parts = ["a", "b", "a-b", "a.b", "a0", "0", "3", "3f", "_", "Z", "z"]
    names = {"/".join(chance.choices(parts, k=chance.randint(1, 4))) + ".x" for _ in range(300)}
    return sorted(names)


@pytest.fixture(params=["memory", "posix"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else PosixStore(tmp_path)
    for name in random_names():
        made.put(name, b"12345")
    yield made
    made.close()


def test_files_are_listed_in_name_order(store: Store) -> None:
    assert [found.name for found in files(store)] == random_names()


def test_files_report_space_on_device(store: Store) -> None:
    found = next(files(store))
    measured = isinstance(store, Measured)
    assert found.physical_bytes % 512 == 0 if measured else found.physical_bytes == 5
    assert found.accessed_s >= found.modified_s


@pytest.mark.parametrize("start", ["a", "a/3", "a-b/a", "z/z", "3", "a/a-b/3f"])
def test_with_prefix_lists_matching_names(store: Store, start: str) -> None:
    expected = [name for name in random_names() if name.startswith(start)]
    assert [found.name for found in with_prefix(store, start)] == expected
    for after in expected[:: max(1, len(expected) // 3)]:
        rest = [name for name in expected if name > after]
        assert [found.name for found in with_prefix(store, start, after)] == rest


def test_outside_skips_prefixes(store: Store) -> None:
    for starts in ([], ["a"], ["a/3", "3/", "z", "a-b/0"]):
        expected = [name for name in random_names() if not name.startswith(tuple(starts))]
        assert [found.name for found in outside(store, starts)] == expected


def test_top_names(store: Store) -> None:
    assert top_names(store) == sorted(
        {name.partition("/")[0] for name in random_names()},
        key=lambda top: min(name for name in random_names() if name.partition("/")[0] == top),
    )


def test_listing_continues_after_invalid_names(tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    for name in ("3~~x", "3 a", "4", "2~", "3/in", "Ü"):
        (tmp_path / name).touch()
    store = PosixStore(tmp_path)
    assert [found.name for found in with_prefix(store, "3")] == ["3 a", "3/in", "3~~x"]
    assert [found.name for found in outside(store, ["3"])] == ["2~", "4", "Ü"]
    store.close()


def test_top_names_finds_folder_beside_file_with_same_prefix(store: Store) -> None:
    """`q-01/x` sorts between `q` and `q/`."""
    before = top_names(store)
    store.put("q", b"1")
    store.put("q-01/x", b"1")
    found = top_names(store)
    assert set(found) - set(before) == {"q", "q-01"}
    assert len(found) == len(before) + 2
