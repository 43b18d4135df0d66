"""Conversions from start to end: options, comparison, and both directions."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from kvtier.errors import InvalidSettings
from kvtier.tiers.shared.format import segment_name
from tests.conversion.foreign import (
    NAME,
    SPACE,
    TreeFolder,
    chain,
    fill_store,
    llmd_fields,
    make_space,
    open_tier,
    read,
    run,
    vllm_fields,
)

KEYS = chain(100)


def test_export_after_import_restores_the_files(tmp_path: Path) -> None:
    tree = TreeFolder(tmp_path / "vllm", vllm_fields()).fill(KEYS)
    before = tree.content()
    make_space(tmp_path / "kv")
    run(tree.root, tmp_path / "kv")
    shutil.rmtree(tree.root / f"{tree.base}_r0")
    report = run(tmp_path / "kv", tree.root, to="vllm-fs")
    assert (report.converted, report.refused, report.complete) == (100, {}, True)
    assert tree.content() == before
    again = run(tmp_path / "kv", tree.root, to="vllm-fs")
    assert (again.converted, again.existed) == (0, 100)


@pytest.mark.parametrize("to", ["kvtier", "vllm-fs"])
def test_dry_run_changes_nothing(tmp_path: Path, to: str) -> None:
    tree = TreeFolder(tmp_path / "vllm", vllm_fields()).fill(KEYS[:50])
    fill_store(tmp_path / "kv", KEYS[40:])
    before = sorted(map(str, tmp_path.rglob("*")))
    sides = (tree.root, tmp_path / "kv")
    report = run(*(sides if to == "kvtier" else sides[::-1]), to=to, dry_run=True)
    # Only the first block of a segment is found by its name.
    there = sum((tmp_path / "kv" / NAME / segment_name(key)).exists() for key in KEYS[40:50])
    expected = (50 - there, there) if to == "kvtier" else (50, 10)
    assert (report.converted, report.existed) == expected
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_manifest_file_creates_the_key_space(tmp_path: Path) -> None:
    tree = TreeFolder(tmp_path / "vllm", vllm_fields()).fill(KEYS)
    make_space(tmp_path / "elsewhere")
    manifest = tmp_path / "elsewhere" / NAME / "manifest.json"
    report = run(tree.root, tmp_path / "kv", space=None, manifest=manifest)
    assert report.converted == 100
    assert (tmp_path / "kv" / NAME / "manifest.json").read_bytes() == manifest.read_bytes()
    tier = open_tier(tmp_path / "kv")
    read(tier, KEYS)
    tier.close()


def test_secret_is_used_in_both_directions(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"5" * 64)
    secret.chmod(0o600)
    tree = TreeFolder(tmp_path / "vllm", vllm_fields()).fill(KEYS)
    make_space(tmp_path / "kv", key_file=secret)
    with pytest.raises(InvalidSettings, match="--key-file"):
        run(tree.root, tmp_path / "kv")
    run(tree.root, tmp_path / "kv", key_files=[secret])
    tier = open_tier(tmp_path / "kv", key_file=secret)
    read(tier, KEYS)
    tier.close()
    back = TreeFolder(tmp_path / "back", vllm_fields())
    run(tmp_path / "kv", back.root, to="vllm-fs", key_files=[secret])
    assert back.content() == tree.content()


def test_mismatching_tree_writes_nothing(tmp_path: Path) -> None:
    tree = TreeFolder(tmp_path / "vllm", vllm_fields(dtype="float16", tokens_per_hash=8))
    tree.fill(KEYS[:3])
    make_space(tmp_path / "kv")
    for sides, to in (((tree.root, tmp_path / "kv"), "kvtier"),):
        with pytest.raises(InvalidSettings, match="dtype: 'float16' != 'bfloat16'; tokens_per_"):
            run(*sides, to=to)
    with pytest.raises(InvalidSettings, match="dtype: 'float16'"):
        run(tmp_path / "kv", tree.root, to="vllm-fs")
    assert not (tmp_path / "kv" / NAME / "blocks").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"space": None}, "--space: name the key space"),
        ({"space": "x"}, "no key space x"),
        ({"manifest": Path("x")}, "--manifest: give it or --space"),
        ({"space": None, "manifest": Path("/nowhere")}, "--manifest: /nowhere cannot be read"),
        ({"space": None, "manifest": Path("/dev/null")}, "--manifest: /dev/null cannot be read"),
        ({"tree": "x"}, "--tree: no tree x"),
    ],
)
def test_invalid_options_are_named_in_the_error(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    tree = TreeFolder(tmp_path / "vllm", vllm_fields()).fill(KEYS[:1])
    make_space(tmp_path / "kv")
    with pytest.raises(InvalidSettings, match=expected):
        run(tree.root, tmp_path / "kv", **options)


def test_export_refuses_trees_other_than_vllms(tmp_path: Path) -> None:
    fill_store(tmp_path / "kv", KEYS[:3])
    tree = TreeFolder(tmp_path / "llmd", llmd_fields())
    with pytest.raises(InvalidSettings, match="only vLLM's fs tier can be written"):
        run(tmp_path / "kv", tree.root, to="vllm-fs")
    with pytest.raises(InvalidSettings, match="--manifest"):
        run(tmp_path / "kv", tree.root, to="vllm-fs", manifest=Path("x"))


def test_destination_that_is_full_raises_one_error(tmp_path: Path) -> None:
    tree = TreeFolder(tmp_path / "vllm", vllm_fields()).fill(KEYS[:3])
    name = make_space(tmp_path / "kv")
    (tmp_path / "kv" / name / "blocks").write_text("a file where a folder should be")
    with pytest.raises(InvalidSettings, match="run the same command again to resume"):
        run(tree.root, tmp_path / "kv")


def test_tree_name_that_a_store_refuses_is_not_exported(tmp_path: Path) -> None:
    fields = {n: getattr(SPACE, n) for n in SPACE.__struct_fields__} | {"model": "my model"}
    name = make_space(tmp_path / "kv", type(SPACE)(**fields))
    tree = TreeFolder(tmp_path / "vllm", vllm_fields(model_name="my model"))
    with pytest.raises(InvalidSettings, match="characters that a store does not allow in names"):
        run(tmp_path / "kv", tree.root, to="vllm-fs", space=name)
