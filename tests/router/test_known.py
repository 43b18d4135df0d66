import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from kvtier.index.fleet.prompt import Prompt, TextPrompt, UnreadPrompt
from kvtier.router.fleet.members import Fleet
from kvtier.router.fleet.replicas import Replica
from kvtier.router.fleet.waiting import Waiting
from kvtier.router.known import KnownModels
from kvtier.router.request.refusals import Refusal


class Asked:
    def __init__(self) -> None:
        self.models: list[str] = []

    async def of(self, body: Mapping[str, Any], model: str) -> Prompt:
        self.models.append(model)
        return TextPrompt(b"", model)

    def unread(self, body: Mapping[str, Any]) -> Prompt:
        return UnreadPrompt(7)


def test_a_model_that_nobody_serves_is_refused_before_its_prompt_is_read() -> None:
    async def test() -> None:
        fleet = Fleet()
        fleet.update([Replica(name="a", url="http://a:1", models=frozenset("m"))])
        prompts = Asked()
        known = KnownModels(prompts, Waiting(fleet, in_flight=1, bound=0, timeout_s=0))
        for model, status in (("x", 404), ("m", 503)):
            with pytest.raises(Refusal) as caught:
                await known.of({}, model)
            assert caught.value.status == status
        fleet.healthy(fleet.members[0], (), 0.0)
        fleet.arrive(fleet.members[0].endpoint, 0, 0)
        await known.of({}, "m")
        assert prompts.models == ["m"], "a busy replica may be waited for"
        assert known.unread({}).tokens == 7

    asyncio.run(test())
