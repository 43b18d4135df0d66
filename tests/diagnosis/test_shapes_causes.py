from kvtier.diagnosis.report import Verdict
from kvtier.diagnosis.shapes import differing, follows, join_words, unknown
from kvtier.testing.samples import sample_space


def test_follows_names_its_causes() -> None:
    told = follows(["dtype", "groups"], "Why.")
    assert told == (Verdict.FOLLOWS, "Why.", "Nothing by itself: it follows from dtype and groups.")


def test_differing_returns_the_fields_that_differ() -> None:
    one, other = sample_space(), sample_space(dtype="int8", isa="x")
    assert differing(one, other, "model", "isa", "dtype") == ["isa", "dtype"]


def test_unknown_is_a_change_verdict() -> None:
    assert unknown().verdict is Verdict.CHANGE


def test_join_words_formats_lists() -> None:
    assert [join_words(words) for words in (["a"], ["a", "b"], ["a", "b", "c"])] == [
        "a",
        "a and b",
        "a, b and c",
    ]
