"""Import of a tree's files to segments that an engine can read."""

import errno
import os
from pathlib import Path

import pytest

from kvtier.blocks.key import UNKNOWN_PARENT
from kvtier.errors import InvalidSettings
from kvtier.inspection.folder_view import FolderView
from kvtier.tiers.base import Outcome
from kvtier.tiers.shared.format import segment_name
from tests.conversion.foreign import (
    BLOCK_BYTES,
    NAME,
    SLOT_BYTES,
    SPACE,
    TreeFolder,
    chain,
    llmd_fields,
    make_space,
    open_tier,
    payload,
    read,
    run,
    vllm_fields,
)

KEYS = chain(100)


def test_engine_reads_every_block_imported_from_vllm(tmp_path: Path) -> None:
    tree = TreeFolder(tmp_path / "vllm", vllm_fields()).fill(KEYS)
    make_space(tmp_path / "kv")
    before = tree.content()
    report = run(tree.root, tmp_path / "kv")
    assert (report.converted, report.bytes) == (100, 100 * BLOCK_BYTES)
    assert (report.existed, report.refused, report.complete) == (0, {}, True)
    assert tree.content() == before
    tier = open_tier(tmp_path / "kv")
    read(tier, KEYS)
    page = tier.scan()
    assert {block.parent for block in page.blocks} == {UNKNOWN_PARENT}
    tier.close()
    assert not [p for p in (tmp_path / "kv").rglob("*") if p.name.startswith(".tmp-")]


def test_prefix_ends_at_a_block_missing_in_the_tree(tmp_path: Path) -> None:
    tree = TreeFolder(tmp_path / "vllm", vllm_fields()).fill(KEYS[:5] + KEYS[6:])
    make_space(tmp_path / "kv")
    run(tree.root, tmp_path / "kv")
    tier = open_tier(tmp_path / "kv")
    assert tier.find(KEYS) == [Outcome.DONE] * 5 + [Outcome.MISSING] * 95
    read(tier, KEYS[6:])
    tier.close()


def test_importer_joins_the_files_of_llmd_workers(tmp_path: Path) -> None:
    fields = {n: getattr(SPACE, n) for n in SPACE.__struct_fields__}
    space = type(SPACE)(**fields | {"world_size": 2, "tp_size": 2})
    tree = TreeFolder(tmp_path / "llmd", llmd_fields(tp_size=2))
    half = BLOCK_BYTES // 2
    for key in KEYS:
        tree.write(key, payload(key)[:half], rank=0)
        tree.write(key, payload(key)[half:], rank=1)
    tree.file(KEYS[-1], rank=1).unlink()
    name = make_space(tmp_path / "kv", space)
    report = run(tree.root, tmp_path / "kv", space=name)
    assert (report.converted, report.refused) == (99, {"missing": 1})
    tier = open_tier(tmp_path / "kv", space)
    read(tier, KEYS[:-1])
    assert tier.find(KEYS[-1:]) == [Outcome.MISSING]
    tier.close()


def test_importer_refuses_and_counts_incomplete_files(tmp_path: Path) -> None:
    tree = TreeFolder(tmp_path / "vllm", vllm_fields()).fill(KEYS)
    tree.write(KEYS[0], payload(KEYS[0]))
    tree.write(KEYS[1], payload(KEYS[1], SLOT_BYTES + 1))
    tree.file(KEYS[2]).unlink()
    tree.file(KEYS[2]).symlink_to(tree.file(KEYS[3]))
    tree.file(KEYS[4]).with_suffix(".bin_1.tmp").touch()
    make_space(tmp_path / "kv")
    for dry_run in (True, False):
        report = run(tree.root, tmp_path / "kv", dry_run=dry_run)
        assert report.refused == {"short": 1, "long": 1, "irregular": 1, "unknown": 1}
        assert report.converted == 97
    tier = open_tier(tmp_path / "kv", is_prefix=False)
    assert tier.find(KEYS) == [Outcome.MISSING] * 3 + [Outcome.DONE] * 97
    tier.close()


def test_importer_keeps_existing_blocks_and_replaces_broken_ones(tmp_path: Path) -> None:
    tree = TreeFolder(tmp_path / "vllm", vllm_fields()).fill(KEYS)
    make_space(tmp_path / "kv")
    first = run(tree.root, tmp_path / "kv", limit=30)
    assert (first.converted, first.limited, first.complete) == (30, True, False)
    done = sorted((tmp_path / "kv" / NAME / "blocks").rglob("*.kvt"))
    done[0].write_bytes(b"?" * 5000)
    kept = done[1].stat()
    second = run(tree.root, tmp_path / "kv")
    assert (second.converted, second.existed, second.complete) == (71, 29, True)
    assert done[1].stat().st_ino == kept.st_ino
    tier = open_tier(tmp_path / "kv")
    read(tier, KEYS)
    tier.close()


def test_importer_continues_when_the_name_is_occupied(tmp_path: Path) -> None:
    tree = TreeFolder(tmp_path / "vllm", vllm_fields()).fill(KEYS[:5])
    space = tmp_path / "kv" / make_space(tmp_path / "kv")
    (space / segment_name(KEYS[0])).mkdir(parents=True)
    link = space / segment_name(KEYS[1])
    link.parent.mkdir()
    link.symlink_to(tmp_path / "elsewhere")
    for dry_run in (True, False):
        report = run(tree.root, tmp_path / "kv", dry_run=dry_run)
        assert (report.converted, report.refused) == (3, {"occupied": 2})
    assert not (tmp_path / "elsewhere").exists()


def test_importer_drops_the_padding(tmp_path: Path) -> None:
    """No checksum covers the padding, neither in a tree nor in a store."""
    tree = TreeFolder(tmp_path / "vllm", vllm_fields())
    tree.write(KEYS[0], payload(KEYS[0]).ljust(SLOT_BYTES, b"?"))
    name = make_space(tmp_path / "kv")
    assert run(tree.root, tmp_path / "kv").converted == 1
    content = (tmp_path / "kv" / name / segment_name(KEYS[0])).read_bytes()
    assert content[-SLOT_BYTES:] == payload(KEYS[0]).ljust(SLOT_BYTES, b"\0")


def test_source_that_does_not_answer_refuses_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = TreeFolder(tmp_path / "vllm", vllm_fields()).fill(KEYS[:5])
    make_space(tmp_path / "kv")

    def dead(*_: object) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr(FolderView, "read_into", dead)
    with pytest.raises(
        InvalidSettings, match="not connected; fix that, then run the same command again"
    ):
        run(tree.root, tmp_path / "kv")
    monkeypatch.undo()
    assert run(tree.root, tmp_path / "kv").converted == 5


def test_wrong_block_size_raises_one_error(tmp_path: Path) -> None:
    tree = TreeFolder(tmp_path / "vllm", vllm_fields())
    for key in KEYS[:5]:
        tree.write(key, bytes(4096))
    make_space(tmp_path / "kv")
    with pytest.raises(InvalidSettings, match=r"block_bytes: .* 4096 bytes.* 8192"):
        run(tree.root, tmp_path / "kv")


def test_importer_refuses_blocks_of_other_groups(tmp_path: Path) -> None:
    tree = TreeFolder(tmp_path / "vllm", vllm_fields()).fill(KEYS[:3])
    folder = tree.file(KEYS[0]).parent
    folder.rename(folder.with_name(folder.name.replace("_g0", "_g1")))
    make_space(tmp_path / "kv")
    report = run(tree.root, tmp_path / "kv")
    assert (report.converted, report.refused) == (2, {"unknown": 1})
