"""From a request's body to the prompt that indexes are asked about.

Tokens where they can be had: from the body itself, from a tokenizer, from an engine. Otherwise
characters, which serve an estimate and never match what replicas tell; that is said once for
each model.

Invariant: there is always a prompt, whatever the body: routing never fails for want of one.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from kvtier.errors import Unavailable
from kvtier.index.fleet.hashing import Hasher, Numbers
from kvtier.index.fleet.prompt import (
    BYTES_PER_TOKEN,
    Prompt,
    TextPrompt,
    TokenPrompt,
    UnreadPrompt,
)
from kvtier.router.request.refusals import shown

_log = logging.getLogger(__name__)

_SAID_MAX: Final = 1000
_REASON_MAX: Final = 300
_INLINE_MAX: Final = 1 << 20
"""Characters that are encoded at once; more, on a thread."""
_DIGEST_BYTES: Final = 16


class ChatPrompt(msgspec.Struct, frozen=True):
    """A chat as templates take it: contents are texts or lists of text parts."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    kwargs: Mapping[str, Any] = {}
    """`chat_template_kwargs`."""
    add_generation_prompt: bool = True

    def text(self) -> str:
        """A plain rendering, for where no template can be had."""
        lines = []
        if self.tools:
            lines.append(f"tools: {_json(self.tools)}\n")
        for message in self.messages:
            rest = {key: message[key] for key in sorted(message) if key not in ("role", "content")}
            lines.append(f"{message.get('role', '')}: {flatten(message.get('content'))}\n")
            if rest:
                lines.append(f"{_json(rest)}\n")
        return "".join(lines)


def conversation_of(body: Mapping[str, Any]) -> ChatPrompt | None:
    """The chat in a body; None where there is none."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return None
    kwargs = body.get("chat_template_kwargs")
    tools = body.get("tools")
    return ChatPrompt(
        messages=[_message(message) for message in messages if isinstance(message, dict)],
        tools=tools if isinstance(tools, list) and tools else None,
        kwargs=kwargs if isinstance(kwargs, dict) else {},
        add_generation_prompt=body.get("add_generation_prompt") is not False,
    )


def completion_of(body: Mapping[str, Any]) -> str | Sequence[int] | None:
    """The prompt of a completion, text or token ids: of several, the longest."""
    prompt = body.get("prompt", body.get("input"))
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not prompt:
        return None
    if isinstance(prompt[0], int):
        return prompt
    several = [one for one in prompt if isinstance(one, str | list)]
    return max(several, key=len, default=None)


def flatten(content: Any) -> str:
    """A content as one text, parts by lines, as engines join them."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """With parts that are no text, such as images, replaced by a mark of their content.

    What comes after an image depends on it. No tokens of the engine's can be foretold from
    there on; two requests with the same image still have the same prefix.
    """
    content = message.get("content")
    kept = {key: value for key, value in message.items() if value is not None}
    if isinstance(content, list):
        kept["content"] = [_part(part) for part in content]
    elif not isinstance(content, str):
        kept["content"] = ""
    if isinstance(kept.get("tool_calls"), list):
        kept["tool_calls"] = [_call(call) for call in kept["tool_calls"]]
    return kept


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    digest = hashlib.blake2b(_json(part).encode(), digest_size=_DIGEST_BYTES).hexdigest()
    return {"type": "text", "text": f"<{digest}>"}


def _call(call: Any) -> Any:
    """Arguments as values and not as JSON, as engines give them to templates."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = msgspec.json.decode(function["arguments"])
    except (msgspec.MsgspecError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _json(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, RecursionError):
        return ""


class TokenSource(Protocol):
    """Belongs to the event loop. Both raise Unavailable."""

    async def completion(self, text: str, model: str, *, add_special_tokens: bool) -> Numbers:
        """Tokens of a plain prompt."""
        ...

    async def chat(self, conversation: ChatPrompt, model: str) -> Numbers:
        """Tokens of a chat, as the model's template writes it."""
        ...


class PromptBuilder:
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
