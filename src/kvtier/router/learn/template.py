"""A model's chat template, loaded from its tokenizer's folder and rendered as engines do.

Invariants: templates run in Jinja's sandbox; rendering raises TemplateError and nothing else.
"""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import jinja2
import jinja2.ext
import jinja2.sandbox
import msgspec

from kvtier.clock import wall_s
from kvtier.errors import InvalidSettings
from kvtier.router.learn.prompts import ChatPrompt, flatten

_CONFIG: Final = "tokenizer_config.json"
_FILE: Final = "chat_template.jinja"
_TOOL_USE: Final = "tool_use"
_DEFAULT: Final = "default"
_GENERATION: Final = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Markers for training, which render to nothing."""
_PARTS: Final = re.compile(r"\bfor\s+\w+\s+in\s+\w+(?:\.content\b|\[\s*['\"]content['\"]\s*\])")
"""Matches a template that iterates over the parts of a message's content itself."""


class TemplateError(Exception):
    """The template rejects the conversation, or fails."""


class ChatTemplate:
    """The chat template of one model. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Raises InvalidSettings if `folder` has no template or it cannot be read."""
        config = _read_config(folder / _CONFIG)
        sources = _sources(folder, config)
        if not sources:
            raise InvalidSettings(f"{folder} has no chat template: no {_FILE}, none in {_CONFIG}")
        environment = _environment()
        try:
            self._templates = {
                name: environment.from_string(_GENERATION.sub("", source))
                for name, source in sources.items()
            }
        except jinja2.TemplateError as error:
            raise InvalidSettings(
                f"the chat template in {folder} cannot be read: {error}"
            ) from error
        self._takes_parts = {name: bool(_PARTS.search(text)) for name, text in sources.items()}
        self._specials = {
            name: _content(value)
            for name, value in config.items()
            if name.endswith("_token") and _content(value)
        }

    def render(self, conversation: ChatPrompt) -> str:
        """Return the text of the prompt. Raises TemplateError."""
        name = _TOOL_USE if conversation.tools and _TOOL_USE in self._templates else _DEFAULT
        if name not in self._templates:
            name = next(iter(self._templates))
        messages = conversation.messages
        if not self._takes_parts[name]:
            messages = [{**one, "content": flatten(one.get("content"))} for one in messages]
        values: dict[str, Any] = {
            **self._specials,
            **conversation.kwargs,
            "messages": messages,
            "tools": conversation.tools,
            "documents": None,
            "add_generation_prompt": conversation.add_generation_prompt,
        }
        try:
            return self._templates[name].render(values)
        except Exception as error:
            # A template is a program, and unexpected input may make it raise anything.
            raise TemplateError(str(error)) from error


def _environment() -> jinja2.Environment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.fromtimestamp(wall_s(), UTC).strftime(form)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        raise InvalidSettings(f"{path} cannot be read: {error}") from error
    return found


def _sources(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Return the templates by name, from a file of their own or from the configuration."""
    try:
        return {_DEFAULT: (folder / _FILE).read_text()}
    except FileNotFoundError:
        found = config.get("chat_template")
    if isinstance(found, str):
        return {_DEFAULT: found}
    listed = found if isinstance(found, list) else []
    return {one["name"]: one["template"] for one in listed if {"name", "template"} <= set(one)}


def _content(value: Any) -> str:
    """Return the text of a special token, which is a string or a mapping; empty if neither."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
