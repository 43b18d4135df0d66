from kvtier.router.request.fields import block, text


def test_the_first_value_counts_and_bytes_are_kept() -> None:
    fields = [(b"a", b"\xe4"), (b"b", b"1"), (b"a", b"2")]
    assert text(fields, b"a") == "\u00e4"
    assert text(fields, b"c") == ""
    assert block(fields) == b"a: \xe4\r\nb: 1\r\na: 2\r\n"
