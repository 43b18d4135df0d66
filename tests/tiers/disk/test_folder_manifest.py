"""The manifest: a slab of another model or format is refused or replaced."""

from pathlib import Path

import msgspec
import pytest

from kvtier.blocks.key import KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.errors import InvalidSettings
from kvtier.tiers.disk.folder import DiskFolder, SlabManifest, adopt_manifest
from kvtier.tiers.files import MANIFEST_NAME
from tests.tiers.disk.slabs import LAYOUT, SPACE, other_space, plain_folder


def ask(
    folder: DiskFolder, space: KeySpace = SPACE, layout: BlockLayout = LAYOUT, **options: str
) -> SlabManifest:
    mode = options.get("on_mismatch", "refuse")
    return adopt_manifest(folder, layout, space, 7, mode)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path):  # type: ignore[no-untyped-def]
    opened = plain_folder(tmp_path / "slab")
    yield opened
    opened.close()


def test_fitting_manifest_is_adopted(folder: DiskFolder) -> None:
    first = ask(folder)
    assert adopt_manifest(folder, LAYOUT, SPACE, 99, "refuse") == first
    assert first.segment_slots == 7


def test_manifest_mismatch_names_fields(folder: DiskFolder) -> None:
    ask(folder)
    with pytest.raises(InvalidSettings) as refused:
        ask(folder, other_space(model="big", dtype="float16"))
    for part in ("model: 'big' != 'tiny'", "dtype: 'float16' != 'float32'", "on_mismatch: replace"):
        assert part in str(refused.value)
    with pytest.raises(InvalidSettings, match=r"block_bytes: 9000 != 4000; slot_bytes: 12288"):
        ask(folder, layout=BlockLayout(block_bytes=9000, tokens_per_block=16))


def test_manifest_of_another_format_names_format(folder: DiskFolder) -> None:
    (folder.path / MANIFEST_NAME).write_text('{"format": 2, "blocks": "elsewhere"}')
    with pytest.raises(InvalidSettings, match="format: 1 != 2"):
        ask(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b'{"format":1}'])
def test_unreadable_manifest_is_refused_or_replaced(folder: DiskFolder, text: bytes) -> None:
    (folder.path / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(InvalidSettings, match=r"manifest\.json cannot be read"):
        ask(folder)
    assert ask(folder, on_mismatch="replace").space == SPACE


def test_replace_removes_only_the_slab(folder: DiskFolder) -> None:
    ask(folder)
    for name in ("segment-00000", "log", "checkpoint", "notes.txt"):
        (folder.path / name).touch()
    new = ask(folder, other_space(model="big"), on_mismatch="replace")
    assert new.space.model == "big"
    assert folder.names() == ["kvtier.lock", MANIFEST_NAME, "notes.txt"]
    stored = (folder.path / MANIFEST_NAME).read_bytes()
    assert msgspec.json.decode(stored, type=SlabManifest) == new


@pytest.mark.parametrize("mode", ["refuse", "replace"])
def test_slab_files_without_manifest_are_refused(folder: DiskFolder, mode: str) -> None:
    (folder.path / "checkpoint").write_text("of a training run")
    with pytest.raises(InvalidSettings, match=r"has no manifest\.json but .*checkpoint"):
        ask(folder, on_mismatch=mode)
    assert (folder.path / "checkpoint").read_text() == "of a training run"
