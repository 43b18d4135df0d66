"""Checksums: what they cover, that they match the documentation, and how secrets are read."""

import hashlib
import hmac
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xxhash

from kvtier.blocks.checksum import Checksum, HmacSha256, Xxh3, checksum_for, load_key
from kvtier.blocks.key import BlockKey
from kvtier.errors import InvalidSettings

SECRET = bytes(range(32))
KEY = BlockKey(bytes(range(36)))
PAYLOAD = np.arange(5000, dtype=np.uint32).astype(np.uint8)
BOTH = pytest.mark.parametrize("checksum", [Xxh3(), HmacSha256(SECRET)], ids=["xxh3", "hmac"])


@BOTH
def test_checksum_covers_key_length_and_payload(checksum: Checksum) -> None:
    changed = PAYLOAD.copy()
    changed[-1] ^= 1
    several = {checksum.block(BlockKey(bytes([n]) * 36), PAYLOAD) for n in range(3)}
    several |= {checksum.block(KEY, PAYLOAD[:size]) for size in (1, 4000, 4999, 5000)}
    several.add(checksum.block(KEY, changed))
    assert len(several) == 8
    assert all(len(each) == 16 for each in several)


@BOTH
def test_checksum_separates_key_from_payload(checksum: Checksum) -> None:
    whole = np.frombuffer(KEY + bytes(8), np.uint8)
    ones = {checksum.block(BlockKey(bytes(whole[:at])), whole[at:]) for at in range(5, 40)}
    assert len(ones) == 35


@BOTH
def test_header_checksum_of_view_equals_bytes(checksum: Checksum) -> None:
    data = bytes(PAYLOAD)
    assert checksum.header(data) == checksum.header(memoryview(data))
    assert checksum.header(data) != checksum.header(data[:-1])
    assert len(checksum.header(b"")) == 16


def test_xxh3_matches_documented_values() -> None:
    seed = xxhash.xxh3_64_intdigest(KEY, 5000)
    assert Xxh3().block(KEY, PAYLOAD) == xxhash.xxh3_128_digest(bytes(PAYLOAD), seed)
    assert Xxh3().header(b"abc") == xxhash.xxh3_128_digest(b"abc")
    # Existing slabs and segments were written with these algorithms.
    assert Xxh3().block(KEY, PAYLOAD).hex() == "8e80cb28e85c58b00898c1a1b6c450a9"
    assert Xxh3.algorithm == 1


def test_hmac_matches_documented_values() -> None:
    def right(message: bytes) -> bytes:
        return hmac.digest(SECRET, message, hashlib.sha256)[:16]

    keyed = HmacSha256(SECRET)
    assert keyed.block(KEY, PAYLOAD) == right((5000).to_bytes(8, "little") + KEY + bytes(PAYLOAD))
    assert keyed.header(b"abc") == right(b"\xff" * 8 + b"abc")
    assert keyed.block(KEY, PAYLOAD).hex() == "0147d83a946839d26f1219cc338a9582"
    assert HmacSha256.algorithm == 2


def test_hmac_of_block_never_equals_header() -> None:
    keyed = HmacSha256(SECRET)
    as_block = keyed.block(KEY, PAYLOAD)
    assert keyed.header((5000).to_bytes(8, "little") + KEY + bytes(PAYLOAD)) != as_block


def test_hmac_depends_on_secret() -> None:
    one, other = HmacSha256(SECRET), HmacSha256(SECRET[:-1] + b"\0")
    assert one.block(KEY, PAYLOAD) != other.block(KEY, PAYLOAD)
    assert one.header(b"abc") != other.header(b"abc")
    assert one.block(KEY, PAYLOAD) != HmacSha256(SECRET + b"\1").block(KEY, PAYLOAD)


def test_hmac_is_thread_safe() -> None:
    keyed = HmacSha256(SECRET)
    payloads = [np.full(1 << 18, n, np.uint8) for n in range(4)]
    right = [keyed.block(KEY, payload) for payload in payloads]
    wrong: list[int] = []

    def check(n: int) -> None:
        wrong.extend(n for _ in range(50) if keyed.block(KEY, payloads[n]) != right[n])

    threads = [threading.Thread(target=check, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("size", [0, 31, 65])
def test_secret_of_wrong_length_is_refused_without_showing_it(size: int) -> None:
    with pytest.raises(ValueError, match=f"a secret of {size} bytes"):
        HmacSha256(b"s" * size)


def test_secret_is_in_no_repr() -> None:
    keyed = HmacSha256(b"s" * 32)
    assert "sss" not in repr(keyed) + str(vars(keyed))


def secret_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (SECRET, SECRET),
        (SECRET + b"\n", SECRET),
        (SECRET[:-1] + b"\n", SECRET[:-1] + b"\n"),  # 32 random bytes may end with a newline
        (SECRET + b"\n\n", SECRET + b"\n"),
        (bytes(64), bytes(64)),
        (b"\xfe" * 64 + b"\n", b"\xfe" * 64),
        (SECRET.hex().encode() + b"\n", SECRET),
        (SECRET.hex().upper().encode(), SECRET),
        (b"ab" * 64, b"\xab" * 64),
        (b"ab" * 16, b"ab" * 16),  # 32 characters
        (b"g" * 33, b"g" * 33),
    ],
)
def test_load_key_reads_raw_bytes_or_hex(tmp_path: Path, content: bytes, secret: bytes) -> None:
    assert load_key(secret_file(tmp_path, content)) == secret


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700, 0o440, 0o640])
def test_load_key_accepts_owner_and_group_modes(tmp_path: Path, mode: int) -> None:
    assert load_key(secret_file(tmp_path, SECRET, mode)) == SECRET


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o601, 0o644])
def test_load_key_refuses_file_open_to_others(tmp_path: Path, mode: int) -> None:
    path = secret_file(tmp_path, SECRET, mode)
    with pytest.raises(InvalidSettings) as refused:
        load_key(path)
    for part in ("shared.key_file", f"{mode:04o}", f"chmod 600 {path}"):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (b"", "0 bytes"),
        (b"hunter2\n", "7 bytes"),
        (b"x" * 65, "65 bytes"),
        (b"ab" * 65, "too many"),
    ],
)
def test_load_key_refuses_other_content_without_showing_it(
    tmp_path: Path, content: bytes, size: str
) -> None:
    with pytest.raises(InvalidSettings) as refused:
        load_key(secret_file(tmp_path, content))
    message = str(refused.value)
    assert "shared.key_file" in message
    assert size in message
    assert "openssl rand" in message
    assert "hunter2" not in message


def make_folder(path: Path) -> None:
    path.mkdir(0o700)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file"),
        (lambda path: os.mkfifo(path, 0o600), "not a regular file"),
        (make_folder, "not a regular file"),
    ],
)
def test_load_key_refuses_unreadable_file(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / "secret")
    with pytest.raises(InvalidSettings, match=rf"shared\.key_file: .*secret.*{reason}"):
        load_key(tmp_path / "secret")


def test_checksum_for_key_file_is_keyed(tmp_path: Path) -> None:
    assert checksum_for(None).algorithm == 1
    keyed = checksum_for(secret_file(tmp_path, SECRET))
    assert keyed.header(b"x") == HmacSha256(SECRET).header(b"x")
