"""What the data path asks of whoever chooses: a prompt to compare by, and a decision.

Why protocols: the server knows nothing of scorers, indexes and tokenizers; the process that
wires them hands them over. All of them belong to the event loop's thread.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.prompt import Prompt
from kvtier.router.choose.base import Candidate, Endpoint, Request
from kvtier.router.choose.decision import Decision
from kvtier.router.choose.parts import nearest
from kvtier.router.request.refusals import invalid


class Chooser(Protocol):
    """One profile; `profile.Profile` is one."""

    @property
    def headers(self) -> frozenset[str]:
        """Request headers that it reads, in lower case."""
        ...

    @property
    def reads_prompts(self) -> bool:
        """Whether it asks an index; where not, a prompt's length is enough."""
        ...

    def decide(self, request: Request, endpoints: Sequence[Endpoint], now_s: float) -> Decision:
        """Choose; no side effects. `endpoints` is not empty."""
        ...

    def routed(self, request: Request, decision: Decision, chosen: Candidate) -> None:
        """The request has been sent there."""
        ...

    def response_headers(self, request: Request, endpoint: Endpoint) -> dict[str, str]:
        """What the client has to be told, so that it is recognised next time."""
        ...


class Prompts(Protocol):
    """Makes prompts of bodies; `learn.prompts.PromptBuilder` is one."""

    async def of(self, body: Mapping[str, Any], model: str) -> Prompt:
        """The prompt as the indexes see it. Raises Refusal where nobody serves the model."""
        ...

    def unread(self, body: Mapping[str, Any]) -> Prompt:
        """Its length alone, about: nothing is tokenized or hashed. Never raises either."""
        ...


async def prompt_for(
    chooser: Chooser, prompts: Prompts, body: Mapping[str, Any], model: str
) -> Prompt:
    """What `chooser` needs of the prompt in `body`."""
    if chooser.reads_prompts:
        return await prompts.of(body, model)
    return prompts.unread(body)


class Choices:
    """The profiles that a request may name in `routing-strategy`, and the one for all others."""

    def __init__(
        self, usual: Chooser, named: Mapping[str, Chooser] | None = None, name: str = ""
    ) -> None:
        """`name`: one of `named` that takes the place of `usual`. Raises InvalidSettings."""
        self._named = dict(named or {})
        if name and name not in self._named:
            raise InvalidSettings(
                f"there is no profile or strategy {name!r}{nearest(name, self._named)}"
            )
        self._usual = self._named[name] if name else usual

    def of(self, strategy: str | None) -> Chooser:
        """The profile of that name. Raises Refusal (400) for a name that is not known."""
        if not strategy:
            return self._usual
        found = self._named.get(strategy)
        if found is None:
            near = nearest(strategy[:60], self._named)
            raise invalid(
                f"routing-strategy {strategy[:60]!r} is not known{near}",
                "routing-strategy",
            )
        return found
