"""Key spaces with valid and invalid manifests."""

import json
from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.spaces import FoundSpace, Secrets, find_spaces
from kvtier.testing.samples import sample_space
from tests.inspection.stores import BLOCK_BYTES, NAME, SPACE, StoreFolder, key_file, keys


def found(store: StoreFolder, *wanted: str) -> list[FoundSpace]:
    folder = FolderView(store.path)
    try:
        return find_spaces(folder, wanted)
    finally:
        folder.close()


def test_find_spaces_returns_every_key_space(store: StoreFolder) -> None:
    other = store.fill(keys(4), sample_space(block_bytes=BLOCK_BYTES, model="b/c"))
    store.fill(keys(4))
    store.plant("not-a-space/manifest.json")
    store.plant("empty-0123456789abcdef/readme")
    assert [(each.name, each.mistake) for each in found(store)] == [(other, None), (NAME, None)]
    assert found(store, NAME)[0].manifest.space == SPACE
    assert found(store)[0].is_keyed is False


def test_find_spaces_refuses_a_missing_key_space(store: StoreFolder) -> None:
    store.fill(keys(4))
    with pytest.raises(InvalidSettings, match=f"no key space x in .*; there are: {NAME}"):
        found(store, "x")


def test_find_spaces_refuses_a_key_space_as_store(store: StoreFolder) -> None:
    store.fill(keys(4))
    inner = StoreFolder(store.path / NAME)
    with pytest.raises(InvalidSettings, match=f"name the store.*: {store.path} --space {NAME}"):
        found(inner)


def spoil(store: StoreFolder, **changes) -> None:
    file = store.path / NAME / "manifest.json"
    manifest = json.loads(file.read_bytes())
    manifest["space"] |= changes.pop("space", {})
    file.write_text(json.dumps(manifest | changes))


def test_find_spaces_refuses_a_newer_format_with_the_fix(store: StoreFolder) -> None:
    store.fill(keys(4))
    spoil(store, format=2)
    with pytest.raises(InvalidSettings, match=r"has format 2, of a newer kvtier.*upgrade it"):
        found(store)


@pytest.mark.parametrize(
    ("changes", "mistake"),
    [
        ({"format": 0}, "is damaged: format 0"),
        ({"witness": "00" * 16}, "witness does not match"),
        ({"algorithm": 7}, "names checksum algorithm 7"),
        ({"space": {"model": "other"}}, "belongs to another key space: other-"),
        ({"space": {"tp_size": "two"}}, "is damaged: manifest.json cannot be read"),
    ],
)
def test_damaged_manifest_is_a_mistake(store: StoreFolder, changes: dict, mistake: str) -> None:
    store.fill(keys(4))
    spoil(store, **changes)
    (space,) = found(store)
    assert space.manifest is None
    assert mistake in str(space.mistake)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"x" * (1 << 21)])
def test_irregular_manifest_does_not_raise(store: StoreFolder, content: bytes) -> None:
    store.fill(keys(4))
    (store.path / NAME / "manifest.json").write_bytes(content)
    assert [space.manifest for space in found(store)] == [None]


def test_missing_manifest_is_a_mistake(store: StoreFolder) -> None:
    store.fill(keys(4))
    (store.path / NAME / "manifest.json").unlink()
    assert [space.mistake for space in found(store)] == ["is missing"]


def test_oversized_blocks_in_a_manifest_are_a_mistake(store: StoreFolder) -> None:
    store.fill(keys(4), sample_space(block_bytes=1 << 40))
    (space,) = found(store)
    assert "which no engine has" in str(space.mistake)


def test_checksum_of_finds_the_matching_secret(store: StoreFolder, tmp_path: Path) -> None:
    right = key_file(tmp_path)
    store.fill(keys(4), key_file=right)
    (tmp_path / "b").mkdir()
    wrong = key_file(tmp_path / "b", b"6" * 64)
    (space,) = found(store)
    assert space.is_keyed
    assert Secrets().checksum_of(space.manifest) is None
    assert Secrets([wrong]).checksum_of(space.manifest) is None
    assert Secrets([wrong, right]).checksum_of(space.manifest).algorithm == 2
    assert (Secrets().sealer.algorithm, Secrets([right]).sealer.algorithm) == (1, 2)
