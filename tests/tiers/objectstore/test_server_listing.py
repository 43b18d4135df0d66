"""Both kinds of listing over a real server, which lists by folders."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from obstore.store import MemoryStore, S3Store

from kvtier.tiers.objectstore.server import Listing, list_folders, list_sorted, stat_of
from kvtier.tiers.shared.store import ListEntry

NAMES = ["a-b", "a.b/x", "a/b/c", "a/b/d", "a/b-", "a/b0/x", "a0", "aa/x", "B/x", "c", "c-x", "c/0"]

Way = Callable[[object, str, str], Listing]


def by_names(client: object, folder: str, after: str) -> Listing:
    return list_sorted(client, folder, after, 5)  # type: ignore[arg-type]


def by_folders(client: object, folder: str, after: str) -> Listing:
    return list_folders(client, folder, after)  # type: ignore[arg-type]


def names(listing: Listing) -> list[str]:
    return [entry.name for entry in listing if entry is not None]


@pytest.mark.parametrize("way", [by_names, by_folders])
def test_listing_ascends_after_any_name(way: Way) -> None:
    """The library's store in RAM lists by whole names, as the clouds do."""
    client = MemoryStore()
    for name in NAMES:
        client.put(name, b"x")
    for folder in ("", "a", "a/b", "c", "none"):
        start = f"{folder}/" if folder else ""
        for after in ["", "0", "a", "a/", "a/b", "b", "c/", "d", *NAMES]:
            expected = [name for name in sorted(NAMES) if name.startswith(start) and name > after]
            assert names(way(client, folder, after)) == expected


def test_listing_of_a_server_that_lists_by_folders(bucket_client: S3Store) -> None:
    for name in NAMES:
        bucket_client.put(name, b"x")
    assert names(by_names(bucket_client, "", "")) != sorted(NAMES), (
        "SeaweedFS lists by whole names: `list_folders` is not needed any more"
    )
    for after in ["", "0", "a", "a/", "a/b", "b", "c/", "d", *NAMES]:
        expected = [name for name in sorted(NAMES) if name > after]
        assert names(by_folders(bucket_client, "", after)) == expected


@pytest.mark.parametrize("way", [by_names, by_folders])
def test_list_entry_equals_stat_of_head(way: Way, bucket_client: S3Store) -> None:
    bucket_client.put("a/b/c", b"some bytes")
    assert [entry for entry in way(bucket_client, "a", "") if entry is not None] == [
        ListEntry("a/b/c", stat_of(bucket_client.head("a/b/c")))
    ]


@pytest.mark.parametrize("way", [by_names, by_folders])
def test_listing_omits_illegal_names(way: Way, bucket_client: S3Store) -> None:
    for name in (".hidden", "a/.probe-1", ".probe-2/x", "a b", "c d/e", "ä", "a/file"):
        bucket_client.put(name, b"x")
    assert names(way(bucket_client, "", "")) == ["a/file"]


@pytest.mark.parametrize("way", [by_names, by_folders])
def test_listing_spans_several_answers(way: Way, bucket_client: S3Store) -> None:
    expected = [f"blocks/{number:04d}" for number in range(1030)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda name: bucket_client.put(name, b""), expected))
    assert names(way(bucket_client, "blocks", "")) == expected
    assert names(way(bucket_client, "", expected[14])) == expected[15:]


@pytest.mark.parametrize("way", [by_names, by_folders])
def test_listing_yields_none_after_each_answer(way: Way) -> None:
    client = MemoryStore()
    for number in range(20):
        client.put(f"{number // 4}/{number:02d}", b"x")
    listing = list(way(client, "", ""))
    assert listing.count(None) >= 4
