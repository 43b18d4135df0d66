"""Prompts of models that somebody serves; a request for any other ends before its prompt is read.

Why: reading, tokenizing and hashing a prompt is most of what a request costs here, and what is
kept or said once for each model must not fill up with names that clients make up.
"""

from collections.abc import Mapping
from typing import Any

from kvtier.index.fleet.prompt import Prompt
from kvtier.router.choices import Prompts
from kvtier.router.fleet.waiting import Waiting


class KnownModels:
    """Meets Prompts."""

    def __init__(self, prompts: Prompts, waiting: Waiting) -> None:
        self._prompts = prompts
        self._waiting = waiting

    async def of(self, body: Mapping[str, Any], model: str) -> Prompt:
        """See Prompts. Raises Refusal where nobody serves the model, or nobody can now."""
        self._waiting.with_room(model)
        return await self._prompts.of(body, model)

    def unread(self, body: Mapping[str, Any]) -> Prompt:
        """See Prompts."""
        return self._prompts.unread(body)
