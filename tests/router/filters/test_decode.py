import pytest

from kvtier.router.filters.decode import PLUGIN
from tests.router.cases import candidate, made, names, request


@pytest.mark.parametrize(
    ("role", "stays"),
    [
        ("decode", True),
        ("both", True),
        ("prefill-decode", True),
        ("encode-prefill-decode", True),
        ("prefill", False),
        ("encode", False),
        ("encode-prefill", False),
    ],
)
def test_decode_filter_keeps_roles_that_decode(role: str, stays: bool) -> None:
    kept = made(PLUGIN).keep(request(), [candidate("a", labels={"llm-d.ai/role": role})])
    assert names(kept) == (["a"] if stays else [])


def test_decode_filter_keeps_replicas_without_a_role() -> None:
    assert names(made(PLUGIN).keep(request(), [candidate("a", labels={"x": "y"})])) == ["a"]
