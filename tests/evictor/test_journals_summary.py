import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.evictor import journals
from kvtier.evictor.journals import decode_summary, encode_summary, summary_name, summary_start
from kvtier.evictor.table import Use

USES = {os.urandom(36): Use(1e9 + number, number) for number in range(300)}


def test_summary_round_trips() -> None:
    assert decode_summary(encode_summary(USES, 0)) == {
        key: Use(use.last_s, min(255, use.times)) for key, use in USES.items()
    }
    assert decode_summary(encode_summary({}, 0)) == {}
    mixed = {b"12345": Use(1, 1), b"123456": Use(2, 2)}
    assert decode_summary(encode_summary(mixed, 0)) == mixed


def test_summary_omits_old_and_surplus_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(decode_summary(encode_summary(USES, 1e9 + 100)) or {}) == 200
    monkeypatch.setattr(journals, "ENTRIES_MAX", 50)
    kept = decode_summary(encode_summary(USES, 0)) or {}
    assert {use.last_s for use in kept.values()} == {1e9 + number for number in range(250, 300)}


def test_summary_detects_damage() -> None:
    raw = encode_summary(dict(list(USES.items())[:3]), 0)
    for at in range(len(raw)):
        assert decode_summary(raw[:at]) is None
        assert decode_summary(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]) is None


@given(st.binary(max_size=200))
def test_summary_of_arbitrary_bytes_is_rejected(raw: bytes) -> None:
    assert decode_summary(raw) is None
    import xxhash

    body = b"KVTUSE\r\n\1\0\0\0" + raw
    decode_summary(body + xxhash.xxh3_128_digest(body))


def test_summary_names_sort_by_epoch() -> None:
    assert summary_name("t", "a", 9) < summary_name("t", "a", 10)
    assert summary_name("t", "a", 9).startswith(summary_start("t", "a"))
