import msgspec
import pytest

from kvtier.blocks.key import GroupShape, KeySpace
from kvtier.errors import InvalidSettings
from kvtier.testing.samples import sample_space

SPACE = sample_space()
OTHER_VALUES = {
    int: 17,
    str: "other",
    tuple: (GroupShape(tokens_per_block=64, layers="cd34"),),
}


@pytest.mark.parametrize("field", KeySpace.__struct_fields__)
def test_every_field_changes_the_digest(field: str) -> None:
    other = msgspec.structs.replace(SPACE, **{field: OTHER_VALUES[type(getattr(SPACE, field))]})
    assert other.digest != SPACE.digest
    (difference,) = SPACE.differing(other)
    assert difference.startswith(f"{field}: ")
    assert " != " in difference


def test_equal_spaces_have_one_digest() -> None:
    again = KeySpace.from_json(SPACE.to_json())
    assert again == SPACE
    assert again.digest == SPACE.digest
    assert SPACE.differing(again) == []
    assert len(SPACE.digest) == 64


def test_order_of_json_fields_does_not_matter() -> None:
    fields = msgspec.json.decode(SPACE.to_json())
    backwards = msgspec.json.encode(dict(reversed(fields.items())))
    assert backwards != SPACE.to_json()
    assert KeySpace.from_json(backwards).digest == SPACE.digest


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[1]", b"\xff", SPACE.to_json()[:-2], SPACE.to_json() + b"x"]
)
def test_invalid_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidSettings, match="not a kvtier key-space manifest"):
        KeySpace.from_json(raw)


def test_json_fields_are_sorted() -> None:
    # Reordering the fields in the source must not change the digest.
    names = list(msgspec.json.decode(SPACE.to_json()))
    assert names == sorted(names)
