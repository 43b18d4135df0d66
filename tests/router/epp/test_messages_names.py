import pytest

from kvtier.router.epp import messages


def test_both_generations_are_read_and_the_newer_counts() -> None:
    old = {"x-gateway-inference-objective": "old", "x-gateway-model-name-rewrite": "m1"}
    new = {"x-llm-d-inference-objective": "new", "x-llm-d-model-name-rewrite": "m2"}
    assert (messages.objective(old), messages.model_rewrite(old)) == ("old", "m1")
    assert (messages.objective(new), messages.model_rewrite(new)) == ("new", "m2")
    assert messages.objective(old | new) == "new"
    assert messages.objective({}) == messages.model_rewrite({}) == ""


@pytest.mark.parametrize("name", [messages.DESTINATION, messages.SERVED, messages.SUBSET])
def test_headers_that_say_where_to_go_are_ours(name: str) -> None:
    assert messages.is_owned(name)
    assert not messages.is_owned("x-gateway-inference-objective")
    assert not messages.is_owned(messages.TEST_SELECTION)
