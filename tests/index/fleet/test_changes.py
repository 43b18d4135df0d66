from kvtier.index.fleet.changes import name_of


def test_a_name_is_the_same_as_a_number_or_as_bytes() -> None:
    whole = bytes(range(32))
    number = int.from_bytes(whole, "big") & (1 << 64) - 1  # as vLLM shortens it
    assert name_of(whole) == name_of(number) < 1 << 60
    assert name_of(whole[:31] + b"\0") != name_of(whole)


def test_anything_has_a_name() -> None:
    for engine_hash in (b"", b"\xff", -1, 0, 1 << 64, -(1 << 63)):
        assert 0 <= name_of(engine_hash) < 1 << 60
