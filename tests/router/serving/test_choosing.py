import pytest

from kvtier.errors import InvalidSettings
from kvtier.router.serving.choosing import Choices
from kvtier.router.serving.refusals import Refusal
from tests.router.http.routers import InTurn


def test_a_request_may_name_its_profile() -> None:
    usual, other = InTurn(), InTurn()
    choices = Choices(usual, {"random": other})
    assert choices.of(None) is usual
    assert choices.of("") is usual
    assert choices.of("random") is other


def test_one_of_the_named_may_be_the_usual_one() -> None:
    usual, other = InTurn(), InTurn()
    assert Choices(usual, {"random": other}, "random").of(None) is other
    with pytest.raises(InvalidSettings, match="'fastest'; known are random"):
        Choices(usual, {"random": other}, "fastest")


def test_a_name_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(Refusal, match="'fastest' is not known; known are random") as caught:
        Choices(InTurn(), {"random": InTurn()}).of("fastest")
    assert caught.value.status == 400
