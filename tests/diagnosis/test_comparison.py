import itertools

from kvtier.diagnosis.comparison import PAIRS_KEPT, LocatedSpace, compare, remarks_on
from kvtier.diagnosis.report import Status, Verdict
from kvtier.testing.samples import sample_space


def seen(place: str = "/kv", witness: str | None = None, **fields: object) -> LocatedSpace:
    return LocatedSpace(place, "name", sample_space(**fields), witness)


def test_compare_explains_each_differing_field() -> None:
    (family,) = compare([seen(tp_size=2, world_size=2, block_bytes=8192), seen()])
    (pair,) = family.pairs
    assert (pair.one, pair.other, pair.verdict) == ("A", "B", Verdict.CHANGE)
    assert pair.conclusion == "can share once tp_size agrees"
    assert {each.field: each.values for each in pair.differences} == {
        "block_bytes": (8192, 4096),
        "world_size": (2, 1),
        "tp_size": (2, 1),
    }


def test_pair_with_one_permanent_difference_cannot_share() -> None:
    (family,) = compare([seen(tp_size=2, dtype="int8", isa="other"), seen()])
    (pair,) = family.pairs
    assert pair.verdict is Verdict.NEVER
    assert pair.conclusion == "cannot share: dtype and isa differ"


def test_compare_covers_every_pair() -> None:
    (family,) = compare([seen(), seen(dtype="int8"), seen(tp_size=2)])
    assert [pair.one + pair.other for pair in family.pairs] == ["AB", "AC", "BC"]
    assert [member.label for member in family.members] == ["A", "B", "C"]


def test_different_models_are_not_compared() -> None:
    families = compare([seen(model="a", weights="1"), seen(model="b", weights="2")])
    assert [family.models for family in families] == [["a"], ["b"]]
    assert [family.pairs for family in families] == [[], []]


def test_models_under_two_names_are_compared() -> None:
    families = compare(
        [
            seen(model="/a", weights="1 x"),
            seen(model="c", weights="3 x"),
            seen(model="/b", weights="1 x"),
            seen(model="/b", weights="2 x"),
        ]
    )
    assert [family.models for family in families] == [["/a", "/b"], ["c"]]
    assert len(families[0].pairs) == 3
    assert families[0].pairs[0].conclusion == "can share once model agrees"


def test_random_weights_do_not_relate_models() -> None:
    assert len(compare([seen(model="a", weights="dummy"), seen(model="b", weights="dummy")])) == 2


def test_equal_key_spaces_in_two_places_are_shared() -> None:
    (family,) = compare([seen("/a", "11"), seen("/b", "11")])
    (pair,) = family.pairs
    assert (pair.verdict, pair.differences) == (None, [])
    assert "if they use the same place" in pair.conclusion
    (family,) = compare([seen("/a", "11"), seen("/b", "22")])
    assert "give every engine the same key_file" in family.pairs[0].conclusion
    (family,) = compare([seen("/a", "11"), seen("/disk", None)])
    assert family.pairs[0].verdict is None


def test_pairs_beyond_the_limit_are_counted() -> None:
    (family,) = compare([seen(tokens_per_hash=number) for number in range(30)])
    assert len(family.pairs) == PAIRS_KEPT
    assert family.pairs_left_out == len(list(itertools.combinations(range(30), 2))) - PAIRS_KEPT
    assert family.members[26].label == "AA"


def test_remarks_name_their_key_space() -> None:
    (check,) = remarks_on(compare([seen(), seen(hash_seed="random 12")]))
    assert (check.topic, check.status) == ("key space B", Status.WARN)
