from typing import Literal

import pytest

from kvtier.router.filters.label_selector import PLUGIN, LabelRequirement
from tests.router.cases import candidate, made, names, request

CANDIDATES = [
    candidate("a", labels={"gpu": "h100", "zone": "1"}),
    candidate("b", labels={"gpu": "a100"}),
    candidate("c"),
]


def test_match_labels_must_all_match() -> None:
    kept = made(PLUGIN, match_labels={"gpu": "h100", "zone": "1"}).keep(request(), CANDIDATES)
    assert names(kept) == ["a"]
    assert made(PLUGIN, match_labels={"gpu": "h100", "zone": "2"}).keep(request(), CANDIDATES) == []


@pytest.mark.parametrize(
    ("requirement", "kept"),
    [
        (LabelRequirement("gpu", "In", ("h100", "h200")), ["a"]),
        (LabelRequirement("gpu", "NotIn", ("h100",)), ["b", "c"]),
        (LabelRequirement("gpu", "Exists"), ["a", "b"]),
        (LabelRequirement("gpu", "DoesNotExist"), ["c"]),
    ],
)
def test_match_expressions_select_by_operator(
    requirement: LabelRequirement, kept: list[str]
) -> None:
    one = made(PLUGIN, match_expressions=(requirement,))
    assert names(one.keep(request(), CANDIDATES)) == kept


def test_empty_selector_keeps_all() -> None:
    assert names(made(PLUGIN).keep(request(), CANDIDATES)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("operator", "values", "said"),
    [
        ("In", (), "values of gpu: In takes values"),
        ("NotIn", (), "values of gpu: NotIn takes values"),
        ("Exists", ("h100",), "values of gpu: Exists takes no values"),
        ("DoesNotExist", ("h100",), "values of gpu: DoesNotExist takes no values"),
    ],
)
def test_operators_reject_missing_or_extra_values(
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"], values: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        LabelRequirement("gpu", operator, values)
