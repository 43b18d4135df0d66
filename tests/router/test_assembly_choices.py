import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.prompt import Prompt, TextPrompt, UnreadPrompt
from kvtier.router.assembly import Choices, KnownModels, prompt_for
from kvtier.router.fleet.members import Fleet
from kvtier.router.fleet.replicas import Replica
from kvtier.router.fleet.waiting import Waiting
from kvtier.router.request.refusals import Refusal
from tests.router.cases import Words
from tests.router.route.routers import InTurn


def test_choices_return_the_profile_that_a_request_names() -> None:
    default, other = InTurn(), InTurn()
    choices = Choices(default, {"random": other})
    assert choices.of(None) is default
    assert choices.of("") is default
    assert choices.of("random") is other


def test_choices_can_use_a_named_profile_as_the_default() -> None:
    default, other = InTurn(), InTurn()
    assert Choices(default, {"random": other}, "random").of(None) is other
    with pytest.raises(InvalidSettings, match="'fastest'; known are random"):
        Choices(default, {"random": other}, "fastest")
    with pytest.raises(InvalidSettings, match="'randm'; did you mean 'random'"):
        Choices(default, {"random": other}, "randm")


def test_choices_refuse_an_unknown_name_with_a_suggestion() -> None:
    with pytest.raises(Refusal, match="'fastest' is not known; known are random") as caught:
        Choices(InTurn(), {"random": InTurn()}).of("fastest")
    assert caught.value.status == 400
    with pytest.raises(Refusal, match="'prefix-cash' is not known; did you mean 'prefix-cache'"):
        Choices(InTurn(), {"prefix-cache": InTurn()}).of("prefix-cash")


class Reading(InTurn):
    """A chooser that reads prompts or not."""

    def __init__(self, *, reads: bool) -> None:
        super().__init__()
        self.reads_prompts = reads


@pytest.mark.parametrize("reads", [True, False])
def test_prompt_is_read_only_for_a_chooser_that_reads_prompts(reads: bool) -> None:
    class Two:
        async def of(self, body: Mapping[str, Any], model: str) -> Prompt:
            assert (body, model) == ({"prompt": "x"}, "m")
            return Words(2)

        def unread(self, body: Mapping[str, Any]) -> Prompt:
            return UnreadPrompt(2)

    prompt = asyncio.run(prompt_for(Reading(reads=reads), Two(), {"prompt": "x"}, "m"))
    assert prompt.tokens == 2
    assert isinstance(prompt, Words) == reads


class RecordingPrompts:
    def __init__(self) -> None:
        self.models: list[str] = []

    async def of(self, body: Mapping[str, Any], model: str) -> Prompt:
        self.models.append(model)
        return TextPrompt(b"", model)

    def unread(self, body: Mapping[str, Any]) -> Prompt:
        return UnreadPrompt(7)


def test_known_models_refuse_an_unserved_model_before_reading_the_prompt() -> None:
    async def test() -> None:
        fleet = Fleet()
        fleet.update([Replica(name="a", url="http://a:1", models=frozenset("m"))])
        prompts = RecordingPrompts()
        known = KnownModels(prompts, Waiting(fleet, in_flight=1, bound=0, timeout_s=0))
        for model, status in (("x", 404), ("m", 503)):
            with pytest.raises(Refusal) as caught:
                await known.of({}, model)
            assert caught.value.status == status
        fleet.mark_healthy(fleet.members[0], (), 0.0)
        fleet.add_load(fleet.members[0].endpoint, 0, 0)
        await known.of({}, "m")
        assert prompts.models == ["m"], "a request may wait for a busy replica"
        assert known.unread({}).tokens == 7

    asyncio.run(test())
