import pytest

from kvtier.router.epp import names


def test_both_generations_are_read_and_the_newer_counts() -> None:
    old = {"x-gateway-inference-objective": "old", "x-gateway-model-name-rewrite": "m1"}
    new = {"x-llm-d-inference-objective": "new", "x-llm-d-model-name-rewrite": "m2"}
    assert (names.objective(old), names.model_rewrite(old)) == ("old", "m1")
    assert (names.objective(new), names.model_rewrite(new)) == ("new", "m2")
    assert names.objective(old | new) == "new"
    assert names.objective({}) == names.model_rewrite({}) == ""


@pytest.mark.parametrize("name", [names.DESTINATION, names.SERVED, names.SUBSET])
def test_headers_that_say_where_to_go_are_ours(name: str) -> None:
    assert names.is_owned(name)
    assert not names.is_owned("x-gateway-inference-objective")
    assert not names.is_owned(names.TEST_SELECTION)
