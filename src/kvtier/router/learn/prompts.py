"""Conversion of a request's body to the prompt that is matched against the indexes.

A prompt consists of tokens if they are available: from the body itself, from a tokenizer, or from
an engine. Otherwise it consists of characters, which match an estimated index but never what
replicas publish; the log reports that once for each model.

Engines differ in what they accept. The router must neither reject what an engine would accept nor
fail on what an engine would reject, so fields of an unexpected type are ignored.

Invariants: every body has a prompt, so routing never fails for lack of one; if one conversation
continues another, the text of the shorter is a prefix of the longer's, except for the last line.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from kvtier.errors import Unavailable
from kvtier.index.fleet.prompt import (
    BYTES_PER_TOKEN,
    Hasher,
    Numbers,
    Prompt,
    TextPrompt,
    TokenPrompt,
    UnreadPrompt,
)
from kvtier.router.request.refusals import shown

_log = logging.getLogger(__name__)

_LOGGED_MAX: Final = 1000
_REASON_MAX: Final = 300
_INLINE_MAX: Final = 1 << 20
"""Longer texts are encoded on a thread instead of the event loop."""
_DIGEST_BYTES: Final = 16


class ChatPrompt(msgspec.Struct, frozen=True):
    """The prompt of a chat request, as templates take it: contents are texts or text parts."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None
    kwargs: Mapping[str, Any] = {}
    """The request's `chat_template_kwargs`."""
    add_generation_prompt: bool = True

    def text(self) -> str:
        """Return a plain rendering, for use without the model's chat template."""
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
    """Return the chat in a request's body; None if it has none."""
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
    """Return the prompt of a completion, as text or token ids; the longest if there are several."""
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
    """Return a message's content as one text, its parts joined by newlines as engines do."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Return `message` with each part that is not text, such as an image, replaced by its hash.

    The engine's tokens for an image cannot be predicted, but requests with the same image still
    share a prefix, and those with different images do not.
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
    """Return a tool call with decoded arguments, as engines pass it to templates."""
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
    """A tokenizer of prompts. Belongs to the event loop; both methods raise Unavailable."""

    async def completion(self, text: str, model: str, *, add_special_tokens: bool) -> Numbers:
        """Return the tokens of a plain prompt."""
        ...

    async def chat(self, conversation: ChatPrompt, model: str) -> Numbers:
        """Return the tokens of a chat as the model's template renders it."""
        ...


class PromptBuilder:
    """A builder of prompts from requests' bodies. Belongs to the event loop."""

    def __init__(
        self,
        sources: Mapping[str, TokenSource] | None = None,
        *,
        hasher: Hasher | None = None,
        canonical: Callable[[str], str] = str,
    ) -> None:
        """`sources` are by model, with `*` for all others; the mapping may change at any time.

        `canonical` maps a model's or adapter's name in requests to its name in the indexes.
        """
        self._canonical = canonical
        self._sources = {} if sources is None else sources
        self._hasher = hasher
        self._logged: set[str] = set()

    async def of(self, body: Mapping[str, Any], model: str) -> Prompt:
        """Return the prompt of `body`, the decoded JSON of a completion, a chat or the like."""
        salt = body.get("cache_salt")
        salt = salt if isinstance(salt, str) else ""
        source = self._sources.get(model) or self._sources.get("*")
        conversation = conversation_of(body)
        prompt = None if conversation is not None else completion_of(body)
        scope = self._canonical(model)
        try:
            if isinstance(prompt, list):
                return TokenPrompt(prompt, scope, salt=salt, hasher=self._hasher)
            if source is None:
                self._warn_once(model, "no tokenizer is configured for it")
            elif conversation is not None:
                tokens = await source.chat(conversation, model)
                return TokenPrompt(tokens, scope, salt=salt, hasher=self._hasher)
            elif isinstance(prompt, str):
                tokens = await source.completion(
                    prompt, model, add_special_tokens=body.get("add_special_tokens") is not False
                )
                return TokenPrompt(tokens, scope, salt=salt, hasher=self._hasher)
        except Unavailable as error:
            self._warn_once(model, str(error))
        except (TypeError, OverflowError):
            prompt = None  # the list contains something other than tokens
        text = conversation.text() if conversation is not None else prompt
        return await self._characters(text if isinstance(text, str) else "", scope, salt)

    def unread(self, body: Mapping[str, Any]) -> Prompt:
        """Return a prompt of estimated length only, for profiles that do not match prompts."""
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

    def _warn_once(self, model: str, reason: str) -> None:
        if model in self._logged or len(self._logged) >= _LOGGED_MAX:
            return
        self._logged.add(model)
        _log.warning(
            "prompts of %s are compared by characters, which is less accurate than tokens: %s",
            shown(model),
            shown(reason, _REASON_MAX),
        )


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
