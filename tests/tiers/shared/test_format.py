"""The segment header: golden files, one encoding each, and hostile bytes."""

import hashlib
import hmac
import struct
import tracemalloc
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvtier.blocks.checksum import Checksum, HmacSha256, Xxh3
from kvtier.blocks.key import UNKNOWN_PARENT, BlockKey
from kvtier.errors import Corrupt
from kvtier.testing.samples import sample_space
from kvtier.tiers.shared.format import (
    MoreNeeded,
    Segment,
    decode_header,
    encode_header,
    header_bytes_for,
    parse_segment_name,
    segment_name,
    space_folder,
)

GOLDEN = Path(__file__).parent / "golden"
SECRET = bytes.fromhex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
DIGEST = bytes.fromhex("c0ffee00" * 8)
PLAIN, KEYED = Xxh3(), HmacSha256(SECRET)


def golden_payload(i: int, size: int) -> bytes:
    """Return the payload of the i-th block of every golden file."""
    return bytes((7 * at + 31 * i + 5) % 256 for at in range(size))


class Golden(NamedTuple):
    """The content of a file that every future kvtier must be able to read."""

    keys: list[str]
    checksums: list[str]
    parent: str | None
    block_bytes: int
    algorithm: int
    header_checksum: str
    total_bytes: int
    slack: bytes = b"\0"
    """The bytes between the payloads, which have no meaning."""


FIRST_GROUP, STATE_GROUP = "00000000", "00000001"
GOLDENS = {
    "one-block": Golden(
        keys=["11" * 32 + FIRST_GROUP],
        checksums=["bf4c553a50014c16cbe3973cca0077c8"],
        parent=None,
        block_bytes=100,
        algorithm=1,
        header_checksum="3146854dba01acbf78978e36b6493772",
        total_bytes=8192,
    ),
    "three-blocks": Golden(
        keys=["a1" * 32 + FIRST_GROUP, "a2" * 32 + FIRST_GROUP, "a3" * 32 + FIRST_GROUP],
        checksums=[
            "abeb256aa0e75184e0d7667400e47c9c",
            "170fc6a0607b688628355b9bbd18cbb2",
            "91523d98a4c4b3f915606333713040a8",
        ],
        parent="a0" * 32 + FIRST_GROUP,
        block_bytes=5000,
        algorithm=1,
        header_checksum="841579e3c405d37faa42ff3172a8d484",
        total_bytes=28672,
        slack=b"\x5a",
    ),
    "short-keys": Golden(
        keys=["b1" * 8 + STATE_GROUP, "b2" * 8 + STATE_GROUP, "b3" * 8 + STATE_GROUP],
        checksums=[
            "35a7c904b900621c0ae4856556c49482",
            "185e7098e058386444889b89b87eb668",
            "8a8df7d5292408cb4371549096292373",
        ],
        parent="",
        block_bytes=300,
        algorithm=1,
        header_checksum="0ff1aba05c19bfc94d3efa88b9efa81a",
        total_bytes=16384,
    ),
    "keyed-state": Golden(
        keys=["c1" * 32 + STATE_GROUP],
        checksums=["394061cd2733096d380fd82c6ab5033d"],
        parent="",
        block_bytes=4096,
        algorithm=2,
        header_checksum="279e21ba82ba1b7d3633bd0c8d778252",
        total_bytes=8192,
    ),
    "keyed-three-blocks": Golden(
        keys=["d1" * 32 + FIRST_GROUP, "d2" * 32 + FIRST_GROUP, "d3" * 32 + FIRST_GROUP],
        checksums=[
            "d8f3992cc35321d259bbe013e4ffe97a",
            "844aa03d2b9abd64b367c7eb9574fe7f",
            "9edadfe1c8435588da787ff628986dfb",
        ],
        parent="d0" * 32 + FIRST_GROUP,
        block_bytes=5000,
        algorithm=2,
        header_checksum="7136b97f6e787c511486d455e572d7da",
        total_bytes=28672,
    ),
}
EVERY_GOLDEN = pytest.mark.parametrize("name", GOLDENS)


def checksum_of(golden: Golden) -> Checksum:
    return KEYED if golden.algorithm == 2 else PLAIN


def read_golden(name: str) -> tuple[Golden, bytes]:
    return GOLDENS[name], (GOLDEN / f"{name}.kvt").read_bytes()


def ask(raw: bytes | bytearray | memoryview, **changed: Any) -> Segment:
    """Decode with what the reader of the golden files and of `header` expects."""
    expected: dict[str, Any] = {
        "checksum": PLAIN,
        "space_digest": DIGEST,
        "block_bytes": 5000,
        "file_bytes": 4096 + 3 * 8192,
    }
    return decode_header(raw, **{**expected, **changed})


def ask_golden(golden: Golden, raw: bytes | bytearray, **changed: Any) -> Segment:
    expected = {
        "checksum": checksum_of(golden),
        "block_bytes": golden.block_bytes,
        "file_bytes": golden.total_bytes,
    }
    return ask(raw, **{**expected, **changed})


@EVERY_GOLDEN
def test_golden_files_are_decoded(name: str) -> None:
    golden, raw = read_golden(name)
    segment = ask_golden(golden, raw, first=bytes.fromhex(golden.keys[0]))
    assert [key.hex() for key in segment.keys] == golden.keys
    assert [check.hex() for check in segment.checksums] == golden.checksums
    assert segment.parent == (None if golden.parent is None else bytes.fromhex(golden.parent))
    assert segment.block_bytes == golden.block_bytes
    assert segment.space_digest == DIGEST
    assert segment.algorithm == golden.algorithm
    assert segment.header_bytes == 4096
    assert segment.slot_bytes == (8192 if golden.block_bytes == 5000 else 4096)
    assert segment.total_bytes == golden.total_bytes == len(raw)
    for i, key in enumerate(segment.keys):
        start = segment.offset(i)
        payload = raw[start : start + golden.block_bytes]
        assert payload == golden_payload(i, golden.block_bytes)
        array = np.frombuffer(payload, np.uint8)
        assert checksum_of(golden).block(key, array) == segment.checksums[i]


def written(golden: Golden) -> bytes:
    """Return the whole file as a writer makes it."""
    checksum = checksum_of(golden)
    keys = tuple(BlockKey(bytes.fromhex(key)) for key in golden.keys)
    payloads = [golden_payload(i, golden.block_bytes) for i in range(len(keys))]
    segment = Segment(
        keys=keys,
        checksums=tuple(
            checksum.block(key, np.frombuffer(payload, np.uint8))
            for key, payload in zip(keys, payloads, strict=True)
        ),
        parent=None if golden.parent is None else BlockKey(bytes.fromhex(golden.parent)),
        block_bytes=golden.block_bytes,
        space_digest=DIGEST,
        algorithm=golden.algorithm,
    )
    slots = [payload.ljust(segment.slot_bytes, golden.slack) for payload in payloads]
    return b"".join([encode_header(segment, checksum), *slots])


@EVERY_GOLDEN
def test_golden_files_are_encoded_byte_for_byte(name: str) -> None:
    golden, raw = read_golden(name)
    assert written(golden) == raw


@EVERY_GOLDEN
def test_golden_files_can_be_read_from_the_documentation(name: str) -> None:
    golden, raw = read_golden(name)
    assert raw[:8] == b"KVTSEG\r\n"
    assert struct.unpack_from("<IIIHHQQ", raw, 8) == (
        1,
        4096,
        len(golden.keys),
        len(golden.keys[0]) // 2,
        golden.algorithm,
        golden.block_bytes,
        8192 if golden.block_bytes == 5000 else 4096,
    )
    assert raw[40:72] == DIGEST
    assert raw[72] == {None: 0, "": 255}.get(golden.parent, len(golden.parent or "") // 2)
    assert raw[73:80] == bytes(7)
    assert raw[80:144] == bytes.fromhex(golden.parent or "").ljust(64, b"\0")
    at = 144
    for i, (key, check) in enumerate(zip(golden.keys, golden.checksums, strict=True)):
        entry = bytes.fromhex(key + check)
        assert raw[at : at + len(entry)] == entry
        at += len(entry)
        assert documented_block_checksum(golden, i).hex() == check
    assert documented_header_checksum(golden, raw[:at]).hex() == golden.header_checksum
    assert raw[at : at + 16].hex() == golden.header_checksum
    assert raw[at + 16 : 4096] == bytes(4096 - at - 16)


def documented_block_checksum(golden: Golden, i: int) -> bytes:
    size, key = golden.block_bytes, bytes.fromhex(golden.keys[i])
    payload = golden_payload(i, size)
    if golden.algorithm == 1:
        return xxhash.xxh3_128_digest(payload, xxhash.xxh3_64_intdigest(key, size))
    message = size.to_bytes(8, "little") + key + payload
    return hmac.digest(SECRET, message, hashlib.sha256)[:16]


def documented_header_checksum(golden: Golden, before: bytes) -> bytes:
    if golden.algorithm == 1:
        return xxhash.xxh3_128_digest(before)
    return hmac.digest(SECRET, b"\xff" * 8 + before, hashlib.sha256)[:16]


@pytest.mark.parametrize("name", ["three-blocks", "keyed-three-blocks"])
def test_change_of_any_header_byte_is_corrupt(name: str) -> None:
    golden, raw = read_golden(name)
    assert ask_golden(golden, raw[:4096])
    changed = bytearray(raw[:4096])
    for at in range(4096):
        for mask in (1, 0x80, 0xFF):
            changed[at] ^= mask
            with pytest.raises(Corrupt):
                ask_golden(golden, changed)
            changed[at] ^= mask
    assert ask_golden(golden, changed)


def chain(count: int = 3, key_bytes: int = 36) -> tuple[BlockKey, ...]:
    return tuple(BlockKey((n + 1).to_bytes(key_bytes, "little")) for n in range(count))


def segment(**fields: Any) -> Segment:
    """Return a segment of three blocks of 5,000 bytes, with some `fields` replaced."""
    keys = fields.get("keys", chain())
    plain: dict[str, Any] = {
        "keys": keys,
        "checksums": tuple(bytes([n % 256]) * 16 for n in range(len(keys))),
        "parent": None,
        "block_bytes": 5000,
        "space_digest": DIGEST,
        "algorithm": 1,
    }
    return Segment(**{**plain, **fields})


def header(**fields: Any) -> bytes:
    return encode_header(segment(**fields), PLAIN)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    key_bytes = draw(st.integers(5, 64))
    key = st.binary(min_size=key_bytes, max_size=key_bytes)
    chained = draw(st.lists(key, min_size=2, max_size=60, unique=True))
    parent = draw(st.sampled_from([None, UNKNOWN_PARENT, chained[0]]))
    checks = st.binary(min_size=16, max_size=16)
    count = len(chained) - 1
    return Segment(
        keys=tuple(BlockKey(each) for each in chained[1:]),
        checksums=tuple(draw(st.lists(checks, min_size=count, max_size=count))),
        parent=None if parent is None else BlockKey(parent),
        block_bytes=draw(st.integers(1, 1 << 40)),
        space_digest=draw(st.binary(min_size=32, max_size=32)),
        algorithm=draw(st.sampled_from([1, 2])),
    )


@given(made=segments(), behind=st.binary(max_size=50))
def test_encode_decode_roundtrip(made: Segment, behind: bytes) -> None:
    checksum = KEYED if made.algorithm == 2 else PLAIN
    raw = encode_header(made, checksum)
    assert len(raw) == made.header_bytes == header_bytes_for(len(made.keys), len(made.keys[0]))
    found = decode_header(
        raw + behind,
        checksum=checksum,
        space_digest=made.space_digest,
        block_bytes=made.block_bytes,
        file_bytes=made.total_bytes,
        first=made.keys[0],
    )
    assert found == made


@pytest.mark.parametrize(("count", "key_bytes"), [(1, 5), (65_535, 5), (65_535, 64)])
def test_longest_and_shortest_headers(count: int, key_bytes: int) -> None:
    made = segment(keys=chain(count, key_bytes))
    raw = encode_header(made, PLAIN)
    assert len(raw) == made.header_bytes < 5_300_000
    assert ask(raw, file_bytes=made.total_bytes) == made


def test_payloads_start_on_pages() -> None:
    made = segment(keys=chain(100))
    assert made.header_bytes == 8192
    assert [made.offset(i) for i in (0, 1, 99)] == [8192, 16384, 8192 + 99 * 8192]
    assert made.total_bytes == 8192 + 100 * 8192
    assert segment(block_bytes=4096).slot_bytes == 4096
    assert segment(block_bytes=4097).slot_bytes == 8192


@pytest.mark.parametrize(
    ("fields", "mistake"),
    [
        ({"keys": (), "checksums": ()}, "0 blocks"),
        ({"keys": chain(65_536)}, "65536 blocks"),
        ({"keys": chain(1, 4)}, "keys of 4 bytes"),
        ({"keys": chain(1, 65)}, "keys of 65 bytes"),
        ({"keys": chain(1) + chain(1, 35)}, "different lengths"),
        ({"parent": BlockKey(bytes(35))}, "different lengths"),
        ({"parent": chain()[1]}, "twice"),
        ({"keys": chain(2) + chain(1)}, "twice"),
        ({"checksums": (b"0" * 16,)}, "1 checksums for 3 keys"),
        ({"checksums": (b"0" * 16, b"0" * 15, b"0" * 16)}, "not 16 bytes"),
        ({"algorithm": 2}, "with a secret"),
        ({"block_bytes": 0}, "0 bytes a block"),
        ({"space_digest": b"short"}, "digest of 5"),
    ],
)
def test_encode_of_invalid_segment_raises(fields: dict[str, Any], mistake: str) -> None:
    with pytest.raises(ValueError, match=mistake):
        header(**fields)


def forged(at: int, form: str, *values: object, **fields: Any) -> bytes:
    """Return a header with other values at one place and a checksum that matches them."""
    raw = bytearray(header(**fields))
    struct.pack_into(form, raw, at, *values)
    count, key_bytes = struct.unpack_from("<IH", raw, 16)
    end = 144 + count * (key_bytes + 16)
    if end + 16 <= len(raw):
        raw[end : end + 16] = PLAIN.header(bytes(raw[:end]))
    return bytes(raw)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (forged(0, "<8s", b"KVTSEG\n\n"), "unlike a segment"),
        (bytes(4096), "unlike a segment"),
        (forged(8, "<I", 2), "version 2, of a newer kvtier"),
        (forged(8, "<I", 0), "version 0, which does not exist"),
        (forged(12, "<I", 8192), "a header of 8192 bytes; 3 blocks need 4096"),
        (forged(12, "<I", 0), "a header of 0 bytes"),
        (forged(16, "<I", 0), "0 blocks; a segment has 1"),
        (forged(16, "<I", 65_536), "65536 blocks; a segment has 1"),
        (forged(16, "<I", 2**32 - 1), "4294967295 blocks; a segment has 1"),
        (forged(16, "<I", 4), "too short: 28672 bytes, its 4 blocks make 36864"),
        (forged(16, "<I", 2), "too long: 28672 bytes, its 2 blocks make 20480"),
        (forged(20, "<H", 4), "keys of 4 bytes"),
        (forged(20, "<H", 65), "keys of 65 bytes"),
        (forged(22, "<H", 2), "written with a secret"),
        (forged(22, "<H", 3), "algorithm 3, which this kvtier does not know"),
        (forged(24, "<Q", 5001), "blocks of 5001 bytes in slots of 8192"),
        (forged(32, "<Q", 4096), "blocks of 5000 bytes in slots of 4096"),
        (forged(40, "<B", 0), "of another key space: 00ffee00c0ffee00, not c0ffee00"),
        (forged(72, "<B", 35, parent=BlockKey(b"p" * 36)), "different lengths: .35, 36."),
        (forged(72, "<B", 200, keys=chain(3, 64)), "twice|the parent's length"),
        (forged(73, "<B", 1), "must be zero"),
        (forged(143, "<B", 1), "must be zero"),
        (forged(80, "<36s", chain()[0], parent=BlockKey(b"p" * 36)), "twice"),
        (forged(144 + 52, "<36s", chain()[0]), "twice"),
        (header()[:-1] + b"\1", "after the header's checksum"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_decode_names_each_wrong_field(raw: bytes, reason: str) -> None:
    file_bytes = 28672
    if struct.unpack_from("<H", raw, 20) == (64,):
        file_bytes = 4096 + 3 * 8192
    with pytest.raises(Corrupt, match=reason):
        ask(raw, file_bytes=file_bytes)


def test_decode_distinguishes_wrong_secret_from_damage() -> None:
    made = segment(algorithm=2)
    raw = encode_header(made, KEYED)
    assert ask(raw, checksum=KEYED) == made
    with pytest.raises(Corrupt, match=r"damaged, or written with another key_file"):
        ask(raw, checksum=HmacSha256(bytes(32)))
    with pytest.raises(Corrupt, match="without a secret; this reader expects one with a secret"):
        ask(header(), checksum=KEYED)
    with pytest.raises(Corrupt, match=r"damaged$"):
        ask(header()[:200] + b"\1" + header()[201:])


def test_algorithm_downgrade_without_the_secret_is_refused() -> None:
    raw = bytearray(encode_header(segment(algorithm=2), KEYED))
    raw[22] = 1
    end = 144 + 3 * 52
    raw[end : end + 16] = PLAIN.header(bytes(raw[:end]))
    assert ask(raw, checksum=PLAIN)
    with pytest.raises(Corrupt, match="without a secret"):
        ask(raw, checksum=KEYED)


def test_segment_under_another_name_is_corrupt() -> None:
    assert ask(header(), first=chain()[0])
    with pytest.raises(Corrupt, match="but is named"):
        ask(header(), first=chain()[1])


@pytest.mark.parametrize("size", [0, 1, 8, 11, 12, 100, 143, 144, 4095])
def test_decode_of_short_read_asks_for_more(size: int) -> None:
    with pytest.raises(MoreNeeded) as short:
        ask(header()[:size])
    assert short.value.header_bytes == 4096


def test_decode_of_long_header_asks_for_its_length() -> None:
    made = segment(keys=chain(200))
    raw = encode_header(made, PLAIN)
    with pytest.raises(MoreNeeded) as short:
        ask(raw[:4096], file_bytes=made.total_bytes)
    assert short.value.header_bytes == len(raw) == 12288
    assert ask(raw, file_bytes=made.total_bytes) == made


@pytest.mark.parametrize("file_bytes", [0, 1, 4095])
def test_file_too_small_for_a_header_is_corrupt(file_bytes: int) -> None:
    with pytest.raises(Corrupt, match=f"{file_bytes} bytes are fewer than any header has"):
        ask(header()[:file_bytes], file_bytes=file_bytes)


def test_segment_without_blocks_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="0 blocks; a segment has 1"):
        ask(forged(16, "<I", 0), file_bytes=4096)


@pytest.mark.parametrize("file_bytes", [4096, 28671, 28673, 36864, 2**63])
def test_file_of_wrong_length_is_corrupt(file_bytes: int) -> None:
    with pytest.raises(Corrupt, match=r"too (short|long)"):
        ask(header(), file_bytes=file_bytes)


@given(raw=st.binary(max_size=5000))
def test_random_bytes_are_corrupt(raw: bytes) -> None:
    with pytest.raises(Corrupt):
        ask(raw.ljust(4096, b"\0"))
    with pytest.raises(Corrupt):
        ask(raw, file_bytes=min(len(raw), 4095))


@given(
    fields=st.tuples(
        st.sampled_from([1, 1, 1, 2]),
        st.one_of(st.sampled_from([4096, 8192]), st.integers(0, 2**32 - 1)),
        st.one_of(st.integers(0, 5), st.integers(0, 2**32 - 1)),
        st.one_of(st.sampled_from([5, 36, 64]), st.integers(0, 2**16 - 1)),
        st.sampled_from([1, 1, 1, 2, 7]),
        st.one_of(st.just(5000), st.integers(0, 2**64 - 1)),
        st.one_of(st.just(8192), st.integers(0, 2**64 - 1)),
    ),
    parent=st.tuples(st.integers(0, 255), st.binary(max_size=64)),
    rest=st.binary(max_size=400),
    file_bytes=st.one_of(st.integers(0, 5).map(lambda n: 4096 + n * 8192), st.integers(0, 2**63)),
)
def test_forged_header_with_right_checksum_is_corrupt_or_consistent(
    fields: tuple[int, ...], parent: tuple[int, bytes], rest: bytes, file_bytes: int
) -> None:
    fixed = struct.pack("<8sIIIHHQQ32sB7x64s", b"KVTSEG\r\n", *fields, DIGEST, *parent)
    end = 144 + fields[2] * (fields[3] + 16)
    body = (fixed + rest).ljust(min(end, 4096), b"\0")[:end]
    raw = (body + PLAIN.header(body)).ljust(4096, b"\0")
    needed, found = 0, None
    try:
        found = ask(raw, file_bytes=file_bytes)
    except MoreNeeded as short:
        needed = short.header_bytes
    except Corrupt:
        pass
    assert needed == 0 or len(raw) < needed <= min(5_300_000, file_bytes)
    assert found is None or (encode_header(found, PLAIN), found.total_bytes) == (raw, file_bytes)


@pytest.mark.parametrize("header_bytes", [4096, header_bytes_for(65_535, 36)])
def test_hostile_block_count_allocates_nothing(header_bytes: int) -> None:
    raw = bytearray(header())
    struct.pack_into("<II", raw, 12, header_bytes, 65_535)
    file_bytes = header_bytes_for(65_535, 36) + 65_535 * 8192
    tracemalloc.start()
    try:
        with pytest.raises((Corrupt, MoreNeeded)):
            ask(raw, file_bytes=file_bytes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000


def test_segment_is_named_by_its_first_block() -> None:
    key = BlockKey(bytes.fromhex("3fa0" + "00" * 30 + "00000001"))
    name = segment_name(key)
    assert name == "blocks/3fa/3fa0" + "00" * 30 + "00000001.kvt"
    assert parse_segment_name(name) == key


@given(key=st.binary(min_size=5, max_size=64))
def test_segment_name_roundtrip(key: bytes) -> None:
    assert parse_segment_name(segment_name(BlockKey(key))) == key


@pytest.mark.parametrize(
    "name",
    [
        "",
        "blocks/3fa/",
        "blocks/3fb/3fa0000000.kvt",
        "blocks/3fa/3fa0000000.kvt\n",
        "blocks/3fa/3fa0000000.kvt.tmp",
        "blocks/3fa/3FA0000000.kvt",
        "blocks/3FA/3FA0000000.kvt",
        "blocks/3fa/3fa000000.kvt",  # half a byte
        "blocks/3fa/3fa00000.kvt",  # four bytes
        "blocks/3fa/3fa" + "0" * 127 + ".kvt",  # 65 bytes
        "blocks/3fa/x/3fa0000000.kvt",
        "/blocks/3fa/3fa0000000.kvt",
        "../blocks/3fa/3fa0000000.kvt",
        "quarantine/3fa0000000-host-1.kvt",
    ],
)
def test_parse_of_other_names_is_none(name: str) -> None:
    assert parse_segment_name(name) is None


@pytest.mark.parametrize(
    ("model", "slug"),
    [
        ("tiny", "tiny"),
        ("org/Model-7B_v1.5", "org-Model-7B_v1.5"),
        ("/models/llama 3", "models-llama-3"),
        ("../../etc", "etc"),
        (".hidden", "hidden"),
        ("-rf", "rf"),
        ("mödel", "m-del"),
        ("", "model"),
        ("///", "model"),
        ("m" * 60, "m" * 40),
    ],
)
def test_space_folder_has_a_readable_name(model: str, slug: str) -> None:
    space = sample_space(model=model)
    assert space_folder(space) == f"{slug}-{space.digest[:16]}"


def test_segment_is_immutable() -> None:
    with pytest.raises(AttributeError):
        segment().parent = UNKNOWN_PARENT  # type: ignore[misc]
    assert msgspec.structs.replace(segment(), parent=UNKNOWN_PARENT) != segment()
