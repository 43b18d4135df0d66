"""Manifests: published once, readable, and refused where they do not fit."""

import hashlib
import hmac
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash

from kvtier.blocks.checksum import HmacSha256, Xxh3
from kvtier.blocks.key import GroupShape, KeySpace
from kvtier.errors import InvalidSettings
from kvtier.testing.memory_store import MemoryStore
from kvtier.testing.samples import sample_space
from kvtier.tiers.shared.format import space_folder
from kvtier.tiers.shared.manifest import (
    encode_manifest,
    ensure_manifest,
    manifest_of,
    parse_manifest,
)
from kvtier.tiers.shared.posix import PosixStore

GOLDEN = Path(__file__).parent / "golden"
SPACE = sample_space()
NAME = f"{space_folder(SPACE)}/manifest.json"
GOLDEN_SPACE = KeySpace(
    engine="vllm 0.32.0",
    model="org/mödel",
    revision="main",
    weights="ab12",
    dtype="bfloat16",
    layout="NHD",
    block_bytes=5000,
    blocks_per_chunk=2,
    tokens_per_hash=16,
    groups=(
        GroupShape(tokens_per_block=32, layers="cd34"),
        GroupShape(tokens_per_block=512, layers="ef56"),
    ),
    world_size=2,
    tp_size=2,
    pp_size=1,
    hash_algorithm="sha256",
    hash_seed="0",
    isa="avx512",
)


@pytest.mark.parametrize(
    ("name", "checksum"), [("plain", Xxh3()), ("keyed", HmacSha256(bytes(range(32))))]
)
def test_golden_manifests_are_readable(name: str, checksum: Xxh3 | HmacSha256) -> None:
    raw = (GOLDEN / f"manifest-{name}.json").read_bytes()
    found = parse_manifest(raw)
    assert found.format == 1
    assert found.space == GOLDEN_SPACE
    assert found.algorithm == checksum.algorithm
    assert found.witness == manifest_of(GOLDEN_SPACE, checksum).witness
    assert encode_manifest(manifest_of(GOLDEN_SPACE, checksum)) == raw
    assert space_folder(found.space) == "org-m-del-96d460210f486ed3"


def test_manifest_can_be_verified_from_the_documentation() -> None:
    manifest = json.loads((GOLDEN / "manifest-keyed.json").read_bytes())
    canonical = json.dumps(
        manifest["space"], sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    digest = hashlib.sha256(canonical.encode()).digest()
    assert digest.hex() == GOLDEN_SPACE.digest
    message = b"\xff" * 8 + b"kvtier manifest\n" + digest
    witness = hmac.digest(bytes(range(32)), message, hashlib.sha256)[:16]
    assert manifest["witness"] == witness.hex()
    manifest = json.loads((GOLDEN / "manifest-plain.json").read_bytes())
    assert manifest["witness"] == xxhash.xxh3_128_hexdigest(b"kvtier manifest\n" + digest)


def test_manifest_is_readable_and_complete() -> None:
    text = encode_manifest(manifest_of(SPACE, Xxh3())).decode()
    lines = [line.strip().rstrip(",") for line in text.splitlines()]
    assert '"format": 1' in lines
    for field in ('"model": "tiny"', '"block_bytes": 4096', '"tokens_per_block": 16'):
        assert field in lines
    # `inspect` reads every field from the manifest.
    fields = json.loads(text)["space"]
    assert set(fields) == set(SPACE.__struct_fields__)


def test_first_engine_publishes_and_others_compare() -> None:
    store = MemoryStore()
    folder = ensure_manifest(store, SPACE)
    assert folder == space_folder(SPACE)
    first = store.stat(NAME)
    assert parse_manifest(bytes(store.raw(NAME))).space == SPACE
    assert ensure_manifest(store, SPACE) == folder
    assert store.stat(NAME) == first
    assert ensure_manifest(store, sample_space(model="big")) != folder


class LateStore(MemoryStore):
    """A store in which another engine publishes just before the first `publish`."""

    def __init__(self, theirs: bytes) -> None:
        super().__init__()
        self.theirs = theirs

    def publish(self, name, parts):  # type: ignore[no-untyped-def]
        super().publish(name, [np.frombuffer(self.theirs, np.uint8)])
        return super().publish(name, parts)


def test_loser_of_the_race_compares() -> None:
    same = encode_manifest(manifest_of(SPACE, Xxh3()))
    assert ensure_manifest(LateStore(same), SPACE) == space_folder(SPACE)
    with pytest.raises(InvalidSettings, match="model: 'tiny' != 'big'"):
        ensure_manifest(
            LateStore(encode_manifest(manifest_of(sample_space(model="big"), Xxh3()))), SPACE
        )


class ForgetfulStore(MemoryStore):
    """A store whose files vanish before they are read."""

    def publish(self, name, parts):  # type: ignore[no-untyped-def]
        return False


def test_manifest_that_keeps_vanishing_raises() -> None:
    with pytest.raises(OSError, match="vanishes by turns"):
        ensure_manifest(ForgetfulStore(), SPACE)


def refused(raw: bytes) -> str:
    """Return the error for a store with `raw` in place of the manifest."""
    store = MemoryStore()
    store.put(NAME, raw)
    with pytest.raises(InvalidSettings) as refusal:
        ensure_manifest(store, SPACE)
    message = str(refusal.value)
    assert message.startswith(f"shared.path: {NAME} does not fit")
    assert "name another place" in message
    assert bytes(store.raw(NAME)) == raw
    return message


def test_manifest_of_other_space_names_differing_fields() -> None:
    message = refused(
        encode_manifest(manifest_of(sample_space(dtype="float16", tp_size=2), Xxh3()))
    )
    assert "dtype: 'float32' != 'float16'" in message
    assert "tp_size: 1 != 2" in message


def test_manifest_of_newer_format_is_named() -> None:
    message = refused(b'{"format": 2, "blocks": "elsewhere"}')
    assert "format 2 of a newer kvtier; this one reads 1" in message
    assert "format 0; this one reads 1" in refused(b'{"format": 0}')


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"format":1}',
        b'{"format":"1"}',
        b'{"new":' + b"[" * 100_000,
        encode_manifest(manifest_of(SPACE, Xxh3())).replace(b"tiny", b"t\xffny"),
    ],
    ids=["empty", "open", "list", "null", "no text", "bare", "typed", "deep", "no utf-8"],
)
def test_unreadable_manifest_is_refused(raw: bytes) -> None:
    assert "manifest.json cannot be read" in refused(raw)


def test_unknown_fields_of_a_manifest_are_ignored() -> None:
    raw = encode_manifest(manifest_of(SPACE, Xxh3())).replace(b"{", b'{"later": [1],', 1)
    assert parse_manifest(raw) == manifest_of(SPACE, Xxh3())


def test_oversized_manifest_is_not_loaded() -> None:
    assert "has 1048577 bytes" in refused(bytes((1 << 20) + 1))


def test_engines_with_different_secrets_are_refused() -> None:
    one, other = HmacSha256(b"1" * 32), HmacSha256(b"2" * 32)
    store = MemoryStore()
    assert ensure_manifest(store, SPACE, one) == ensure_manifest(store, SPACE, one)
    with pytest.raises(InvalidSettings, match=r"shared\.key_file: .*another secret"):
        ensure_manifest(store, SPACE, other)
    with pytest.raises(InvalidSettings, match=r"shared\.key_file: .*algorithm 2.*settings 1"):
        ensure_manifest(store, SPACE)
    plain = MemoryStore()
    ensure_manifest(plain, SPACE)
    with pytest.raises(InvalidSettings, match=r"shared\.key_file: .*algorithm 1.*settings 2"):
        ensure_manifest(plain, SPACE, one)


def test_manifest_does_not_contain_the_secret() -> None:
    text = encode_manifest(manifest_of(SPACE, HmacSha256(b"1" * 32))).decode()
    assert "1" * 32 not in text
    assert (b"1" * 32).hex() not in text


class BrokenStore(MemoryStore):
    """A store on a mount that is gone."""

    def stat(self, name):  # type: ignore[no-untyped-def]
        raise OSError(5, "Input/output error", name)


def test_errors_of_the_store_are_raised() -> None:
    with pytest.raises(OSError, match="Input/output error"):
        ensure_manifest(BrokenStore(), SPACE)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["a FIFO", "a folder"])
def test_irregular_file_in_place_of_manifest_is_refused(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    store = PosixStore(tmp_path)
    space = sample_space()
    (tmp_path / space_folder(space)).mkdir()
    make(tmp_path / space_folder(space) / "manifest.json")
    with pytest.raises(InvalidSettings, match=r"manifest\.json .*it is not a regular file"):
        ensure_manifest(store, space)
    store.close()
