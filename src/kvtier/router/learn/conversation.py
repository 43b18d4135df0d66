"""What of a request's body its prompt is made of.

Engines differ in what they accept; a router must not refuse what an engine would take, nor fail
over what it would refuse. Whatever has another type than it should is left out.

Invariant: two conversations of which one goes on where the other ends have texts of which one
begins with the other, but for the last line.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

_DIGEST_BYTES = 16


class Conversation(msgspec.Struct, frozen=True):
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


def conversation_of(body: Mapping[str, Any]) -> Conversation | None:
    """The chat in a body; None where there is none."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        return None
    kwargs = body.get("chat_template_kwargs")
    tools = body.get("tools")
    return Conversation(
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
