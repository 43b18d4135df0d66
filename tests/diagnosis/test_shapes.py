"""The explanations of fields on the shape and layout of blocks."""

import pytest

from kvtier.blocks.key import GroupShape
from kvtier.diagnosis import shapes
from kvtier.diagnosis.report import Verdict
from kvtier.diagnosis.shapes import Explanation, differing, follows, join_words, unknown
from kvtier.testing.samples import sample_space

CHANGE, FOLLOWS = Verdict.CHANGE, Verdict.FOLLOWS
DIRECT = {"layout": "LBNHC direct pcp1 dcp1"}


def explain_field(field: str, one: dict[str, object], other: dict[str, object]) -> Explanation:
    spaces = (sample_space(**{**DIRECT, **fields}) for fields in (one, other))
    explained: Explanation = getattr(shapes, field)(*spaces)
    return explained


@pytest.mark.parametrize(
    ("field", "one", "other", "verdict", "expected"),
    [
        ("layout", {"layout": "NHD direct"}, {"layout": "HND direct"}, CHANGE, "VLLM_KV_CACHE_LA"),
        ("layout", {"layout": "unknown direct"}, {}, CHANGE, "could not determine"),
        ("layout", {"layout": "LBNHC canonical"}, {}, CHANGE, '"canonical_layout": true'),
        ("layout", {"layout": "LBNHC direct pcp1 dcp2"}, {}, CHANGE, "--decode-context-parallel"),
        ("block_bytes", {"block_bytes": 8192}, {}, CHANGE, "Nothing else differs"),
        ("block_bytes", {"dtype": "int8", "tp_size": 2}, {}, FOLLOWS, "from dtype and tp_size."),
        ("block_bytes", {"world_size": 2}, {}, FOLLOWS, "from world_size."),
        ("blocks_per_chunk", {"blocks_per_chunk": 4}, {}, CHANGE, "contains 4 blocks"),
        ("tokens_per_hash", {"tokens_per_hash": 32}, {}, CHANGE, "every 32 tokens here"),
        ("groups", {"groups": ()}, {}, CHANGE, "into 0 groups here and into 1 there"),
        ("world_size", {"world_size": 2}, {}, CHANGE, "between 2 workers here and 1 there"),
        ("world_size", {"tp_size": 2}, {}, FOLLOWS, "from tp_size."),
        ("tp_size", {"tp_size": 4}, {}, CHANGE, "divided per rank: 4 here, 1 there"),
        ("tp_size", {"tp_size": 4}, {}, CHANGE, '"canonical_layout": true in'),
        ("tp_size", {"tp_size": 4, "pp_size": 2}, {}, CHANGE, "pipeline or context paralle"),
        ("tp_size", {"tp_size": 4, "layout": "HND direct"}, {}, CHANGE, "to LBNHC or LBHNC on"),
        ("layout", {"layout": "LBNHC canonical"}, {"pp_size": 2}, CHANGE, "no order is the same"),
        ("tp_size", {"layout": "LBNHC canonical"}, {"tp_size": 4}, FOLLOWS, "from layout."),
        ("pp_size", {"pp_size": 2}, {}, CHANGE, "--pipeline-parallel-size"),
        ("pp_size", {"layout": "LBNHC canonical"}, {"pp_size": 4}, FOLLOWS, "from layout."),
    ],
)
def test_shape_explanation_fits_the_case(
    field: str, one: dict[str, object], other: dict[str, object], verdict: Verdict, expected: str
) -> None:
    explained = explain_field(field, one, other)
    assert explained.verdict is verdict
    assert expected in f"{explained.why} {explained.change}"


def test_groups_differ_in_tokens_or_layers() -> None:
    def groups(tokens: int, layers: str) -> dict[str, object]:
        return {"groups": (GroupShape(tokens_per_block=tokens, layers=layers),)}

    assert (
        "[16] tokens here and [32] there"
        in explain_field("groups", groups(16, "a"), groups(32, "a")).why
    )
    assert "a different order" in explain_field("groups", groups(16, "a"), groups(16, "b")).why
    staged = explain_field("groups", {**groups(16, "a"), "pp_size": 2}, groups(16, "b"))
    assert (staged.verdict, staged.change[-8:]) == (FOLLOWS, "pp_size.")


def test_tp_size_of_canonical_layouts_needs_equal_sizes() -> None:
    canonical = {"layout": "LBNHC canonical"}
    assert (
        "canonical" not in explain_field("tp_size", {**canonical, "tp_size": 2}, canonical).change
    )


def test_follows_names_its_causes() -> None:
    explanation = follows(["dtype", "groups"], "Why.")
    assert explanation == (
        Verdict.FOLLOWS,
        "Why.",
        "Nothing by itself: it follows from dtype and groups.",
    )


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
