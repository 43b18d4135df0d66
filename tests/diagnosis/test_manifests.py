"""Reading the key spaces of all kinds of places."""

import os
from pathlib import Path

import pytest
from obstore.store import S3Store

from kvtier.blocks.checksum import Xxh3
from kvtier.blocks.layout import BlockLayout
from kvtier.diagnosis.manifests import read_place
from kvtier.diagnosis.report import Status
from kvtier.testing.samples import sample_space
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.shared.manifest import encode_manifest, manifest_of
from tests.inspection.stores import BLOCK_BYTES, NAME, SPACE, StoreFolder, keys

LAYOUT = BlockLayout(block_bytes=4096, tokens_per_block=16)
DISK_SPACE = sample_space()


@pytest.fixture
def store(tmp_path: Path) -> StoreFolder:
    (tmp_path / "kv").mkdir()
    return StoreFolder(tmp_path / "kv")


def make_disk(path: Path) -> Path:
    DiskTier(path, 4 << 20, LAYOUT, DISK_SPACE).close()
    return path


def results_of(place: Path | str) -> list[tuple[Status, str]]:
    return [(check.status, check.told) for check in read_place(str(place)).checks]


def test_read_place_of_shared_folder(store: StoreFolder) -> None:
    store.fill(keys(4))
    store.fill(keys(4), sample_space(block_bytes=BLOCK_BYTES, dtype="int8"))
    store.plant("stranger/file")
    reading = read_place(str(store.path))
    assert {each.space.dtype for each in reading.spaces} == {"float32", "int8"}
    assert all(each.witness and each.place == str(store.path) for each in reading.spaces)
    assert results_of(store.path) == [(Status.OK, "a shared folder with 2 key spaces")]


def test_read_place_of_empty_folder(tmp_path: Path) -> None:
    assert results_of(tmp_path) == [(Status.OK, "a shared folder with no key spaces")]


def test_read_place_of_key_space_and_its_manifest(store: StoreFolder) -> None:
    store.fill(keys(4))
    for place in (store.path / NAME, store.path / NAME / "manifest.json"):
        (sighting,) = read_place(str(place)).spaces
        assert (sighting.name, sighting.space) == (NAME, SPACE)
    assert results_of(store.path / NAME) == [
        (Status.OK, "one key space of a store with 1 key space")
    ]


def test_read_place_of_disk_tier(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk")
    (sighting,) = read_place(str(path)).spaces
    assert (sighting.space, sighting.witness) == (DISK_SPACE, None)
    assert results_of(path) == [(Status.OK, "a disk tier with 1 key space")]


def test_read_place_counts_equal_replicas_once(tmp_path: Path) -> None:
    for number in range(2):
        make_disk(tmp_path / f"replica-{number}")
    assert len(read_place(str(tmp_path)).spaces) == 1
    assert results_of(tmp_path) == [(Status.OK, "a disk tier of 2 replicas with 1 key space")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "its manifest.json is damaged"),
        (b'{"format": 2}', "its manifest.json has format 2, of a newer kvtier"),
        (b'{"format": 1, "slot_bytes": 1}', "its manifest.json is damaged"),
        (b"x" * (1 << 21), "longer than 1048576 bytes"),
    ],
)
def test_bad_manifest_does_not_hide_others(
    store: StoreFolder, content: bytes, expected: str
) -> None:
    other = store.fill(keys(4), sample_space(block_bytes=BLOCK_BYTES, dtype="int8"))
    store.fill(keys(4))
    (store.path / NAME / "manifest.json").write_bytes(content)
    reading = read_place(str(store.path))
    assert [each.name for each in reading.spaces] == [other]
    ok, bad = reading.checks
    assert (ok.status, bad.status) == (Status.OK, Status.FAIL)
    assert bad.told.startswith(f"{NAME}: ")
    assert expected in bad.told
    assert bad.fix


def test_read_place_of_invalid_place_fails(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(b"{}")
    os.mkfifo(tmp_path / "pipe")
    for name, expected in (
        ("none", "does not exist"),
        ("pipe", "is not a folder"),
        ("file.json", "manifest.json cannot be read"),
    ):
        statuses = results_of(tmp_path / name)
        assert statuses[-1][0] is Status.FAIL
        assert expected in statuses[-1][1]
    assert "is not a bucket's URL" in results_of("ftp://host/x")[-1][1]


def test_read_place_of_damaged_disk_tier_fails(tmp_path: Path) -> None:
    path = make_disk(tmp_path / "disk")
    (path / "manifest.json").write_bytes(b"nonsense")
    assert read_place(str(path)).checks[-1].status is Status.FAIL


def test_read_place_of_bucket(bucket_url: str, bucket_client: S3Store) -> None:
    manifest = encode_manifest(manifest_of(SPACE, Xxh3()))
    bucket_client.put(f"{NAME}/manifest.json", manifest)
    for number in range(3):
        bucket_client.put(f"{NAME}/blocks/00{number}/x.kvt", b"x")
        bucket_client.put(f"stranger/{number}", b"x")
    bucket_client.put("model-0123456789abcdef/manifest.json", manifest)
    bucket_client.put("leases/x", b"x")
    reading = read_place(bucket_url)
    (sighting,) = reading.spaces
    assert (sighting.name, sighting.space, sighting.place) == (NAME, SPACE, bucket_url)
    ok, bad = reading.checks
    assert ok.told == "a bucket with 1 key space"
    assert bad.told.startswith(
        "model-0123456789abcdef: its manifest.json belongs to another key space"
    )
