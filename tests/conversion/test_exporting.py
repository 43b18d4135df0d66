"""Export of blocks to files as vLLM writes them."""

from pathlib import Path

from kvtier.blocks.key import BlockKey
from tests.conversion.foreign import (
    NAME,
    TreeFolder,
    chain,
    fill_store,
    run,
    vllm_fields,
)

KEYS = chain(100)


def test_exporter_writes_one_file_per_block(tmp_path: Path) -> None:
    fill_store(tmp_path / "kv", KEYS, blocks=7)
    tree = TreeFolder(tmp_path / "vllm", vllm_fields())
    right = TreeFolder(tmp_path / "right", vllm_fields()).fill(KEYS)
    report = run(tmp_path / "kv", tree.root, to="vllm-fs")
    assert (report.converted, report.refused) == (100, {})
    assert tree.content() == right.content()


def test_exporter_refuses_damaged_blocks(tmp_path: Path) -> None:
    fill_store(tmp_path / "kv", KEYS[:20], blocks=4)
    files = sorted((tmp_path / "kv" / NAME / "blocks").rglob("*.kvt"))
    payload_damaged, header_damaged = files[0], files[1]
    for file, at in ((payload_damaged, 4096 + 7), (header_damaged, 100)):
        content = bytearray(file.read_bytes())
        content[at] ^= 1
        file.write_bytes(content)
    tree = TreeFolder(tmp_path / "vllm", vllm_fields())
    report = run(tmp_path / "kv", tree.root, to="vllm-fs")
    assert (report.converted, report.refused) == (15, {"damaged": 2})
    right = TreeFolder(tmp_path / "right", vllm_fields()).fill(KEYS[:20]).content()
    assert tree.content().items() <= right.items()


def test_exporter_keeps_other_files_under_the_same_name(tmp_path: Path) -> None:
    fill_store(tmp_path / "kv", KEYS[:3])
    tree = TreeFolder(tmp_path / "vllm", vllm_fields())
    file = tree.write(KEYS[1], b"?")
    report = run(tmp_path / "kv", tree.root, to="vllm-fs")
    assert (report.converted, report.refused) == (2, {"occupied": 1})
    assert file.read_bytes() == b"?"


def test_exporter_continues_after_links_and_folders(tmp_path: Path) -> None:
    fill_store(tmp_path / "kv", KEYS[:5])
    tree = TreeFolder(tmp_path / "vllm", vllm_fields())
    tree.file(KEYS[1]).mkdir(parents=True)
    link = tree.file(KEYS[2])
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "elsewhere")
    for dry_run in (True, False):
        report = run(tmp_path / "kv", tree.root, to="vllm-fs", dry_run=dry_run)
        assert (report.converted, report.refused) == (3, {"occupied": 2})
    assert not (tmp_path / "elsewhere").exists()


def test_exporter_zeroes_the_padding(tmp_path: Path) -> None:
    """The padding is not covered by a checksum, so it may contain anything."""
    fill_store(tmp_path / "kv", KEYS[:1])
    (file,) = (tmp_path / "kv").rglob("*.kvt")
    content = bytearray(file.read_bytes())
    content[-1] = 7
    file.write_bytes(content)
    tree = TreeFolder(tmp_path / "vllm", vllm_fields())
    assert run(tmp_path / "kv", tree.root, to="vllm-fs").converted == 1
    right = TreeFolder(tmp_path / "right", vllm_fields()).fill(KEYS[:1])
    assert tree.content() == right.content()


def test_exporter_skips_folders_outside_the_fan_out(tmp_path: Path) -> None:
    fill_store(tmp_path / "kv", KEYS[:1])
    deep = tmp_path / "kv" / NAME / "blocks"
    for _ in range(50):
        deep = deep / "d"
    deep.mkdir(parents=True)
    for name in ("file", "another"):
        (deep / name).touch()
    tree = TreeFolder(tmp_path / "vllm", vllm_fields())
    report = run(tmp_path / "kv", tree.root, to="vllm-fs")
    assert (report.converted, report.refused) == (1, {"unknown": 1})


def test_exporter_refuses_blocks_of_other_groups(tmp_path: Path) -> None:
    of_another = BlockKey(KEYS[1][:-4] + (1).to_bytes(4))
    fill_store(tmp_path / "kv", [KEYS[0], of_another], blocks=1)
    tree = TreeFolder(tmp_path / "vllm", vllm_fields())
    report = run(tmp_path / "kv", tree.root, to="vllm-fs")
    assert (report.converted, report.refused) == (1, {"unknown": 1})
