"""What chooses, put together from a configuration: indexes, profiles, prompts."""

from collections.abc import Callable, Sequence
from types import TracebackType

from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.estimated import EstimatedIndex
from kvtier.index.fleet.prompt import Prompt, TextPrompt
from kvtier.router import profile
from kvtier.router.base import Endpoint
from kvtier.router.config import Configuration
from kvtier.router.fleet import Listener
from kvtier.router.http.choosing import Choices, Prompts


class _Characters:
    async def prompt(self, path: str, model: str, body: bytes) -> Prompt:
        del path
        return TextPrompt(body, model)


class Assembled:
    """All of one process; an async context while it is used."""

    def __init__(self, configuration: Configuration) -> None:
        indexes = {
            name: EstimatedIndex(
                {spec.tier or DEVICE: spec.capacity_tokens}, block_tokens=spec.block_tokens
            )
            for name, spec in configuration.indexes.items()
        }
        profiles = profile.build(configuration, indexes)
        self.choices = Choices(next(iter(profiles.values())), profiles)
        self.prompts: Prompts = _Characters()
        self.listeners: Sequence[Listener] = ()
        self.saturation: Callable[[Sequence[Endpoint], float], float] | None = None

    async def __aenter__(self) -> "Assembled":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


def assemble(configuration: Configuration) -> Assembled:
    """Raises InvalidSettings."""
    return Assembled(configuration)
