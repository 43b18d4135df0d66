"""From a request's body to the prompt that indexes are asked about.

Tokens where they can be had: from the body itself, from a tokenizer, from an engine. Otherwise
characters, which serve an estimate and never match what replicas tell; that is said once for
each model.

Invariant: there is always a prompt, whatever the body: routing never fails for want of one.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from kvtier.errors import Unavailable
from kvtier.index.fleet.hashing import Hasher
from kvtier.index.fleet.prompt import (
    BYTES_PER_TOKEN,
    Prompt,
    TextPrompt,
    TokenPrompt,
    UnreadPrompt,
)
from kvtier.router.learn.conversation import completion_of, conversation_of
from kvtier.router.learn.sources import TokenSource
from kvtier.router.request.showing import shown

_log = logging.getLogger(__name__)

_SAID_MAX: Final = 1000
_REASON_MAX: Final = 300
_INLINE_MAX: Final = 1 << 20
"""Characters that are encoded at once; more, on a thread."""


class Prompts:
    """Makes prompts, by the models that sources are given for. Belongs to the event loop."""

    def __init__(
        self,
        sources: Mapping[str, TokenSource] | None = None,
        *,
        hasher: Hasher | None = None,
        called: Callable[[str], str] = str,
    ) -> None:
        """`sources` by model; that of `*` is for all others. They may change meanwhile.

        `called`: what indexes call a model or adapter that requests name so.
        """
        self._called = called
        self._sources = {} if sources is None else sources
        self._hasher = hasher
        self._said: set[str] = set()

    async def of(self, body: Mapping[str, Any], model: str) -> Prompt:
        """`body`: decoded JSON of a completion, a chat, or whatever else has a prompt."""
        salt = body.get("cache_salt")
        salt = salt if isinstance(salt, str) else ""
        source = self._sources.get(model) or self._sources.get("*")
        conversation = conversation_of(body)
        prompt = None if conversation is not None else completion_of(body)
        scope = self._called(model)
        try:
            if isinstance(prompt, list):
                return TokenPrompt(prompt, scope, salt=salt, hasher=self._hasher)
            if source is None:
                self._say(model, "no tokenizer is given for it")
            elif conversation is not None:
                tokens = await source.chat(conversation, model)
                return TokenPrompt(tokens, scope, salt=salt, hasher=self._hasher)
            elif isinstance(prompt, str):
                tokens = await source.completion(
                    prompt, model, add_special_tokens=body.get("add_special_tokens") is not False
                )
                return TokenPrompt(tokens, scope, salt=salt, hasher=self._hasher)
        except Unavailable as error:
            self._say(model, str(error))
        except (TypeError, OverflowError):
            prompt = None  # a list of what are no tokens
        text = conversation.text() if conversation is not None else prompt
        return await self._characters(text if isinstance(text, str) else "", scope, salt)

    def unread(self, body: Mapping[str, Any]) -> Prompt:
        """Its length, where nobody compares it: tokens, or characters by rule of thumb."""
        conversation = conversation_of(body)
        prompt = completion_of(body) if conversation is None else conversation.text()
        if isinstance(prompt, str):
            return UnreadPrompt(len(prompt) // BYTES_PER_TOKEN)
        return UnreadPrompt(len(prompt or ()))

    async def _characters(self, text: str, scope: str, salt: str) -> Prompt:
        if len(text) > _INLINE_MAX:
            encoded = await asyncio.to_thread(_encoded, text)
        else:
            encoded = _encoded(text)
        return TextPrompt(encoded, scope, salt=salt, hasher=self._hasher)

    def _say(self, model: str, reason: str) -> None:
        if model in self._said or len(self._said) >= _SAID_MAX:
            return
        self._said.add(model)
        _log.warning(
            "prompts of %s are compared by characters, which tells less than tokens: %s",
            shown(model),
            shown(reason, _REASON_MAX),
        )


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
