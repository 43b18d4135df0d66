from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.router.learn.prompts import completion_of, conversation_of, flatten

TURNS: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Who?"}, "and", {"text": "when?"}]},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "no json"}}]},
    {"role": "tool", "content": "42", "tool_call_id": "1"},
    {"role": "user", "content": "Go on."},
]


def text(messages: list[Any], **more: Any) -> str:
    chat = conversation_of({"messages": messages, **more})
    assert chat is not None
    return chat.text()


def test_continued_conversation_extends_text_of_previous() -> None:
    for turns in range(1, len(TURNS)):
        for tools in (None, [{"name": "f"}]):
            whole = text(TURNS[: turns + 1], tools=tools)
            assert whole.startswith(text(TURNS[:turns], tools=tools))


def test_conversation_text_depends_on_every_field() -> None:
    texts = {
        text([{**TURNS[0], "content": "Be long."}]),
        text([{**TURNS[0], "role": "user"}]),
        text([{**TURNS[0], "name": "x"}]),
        text(TURNS[:1]),
        text(TURNS[:1], tools=[{"name": "f"}]),
    }
    assert len(texts) == 5


def test_non_text_parts_are_replaced_by_hash() -> None:
    def image(url: str) -> list[Any]:
        part = {"type": "image_url", "image_url": {"url": url}}
        return [{"role": "user", "content": [{"type": "text", "text": "See"}, part]}]

    one, other = text(image("data:1")), text(image("data:2"))
    assert one == text(image("data:1")) != other
    assert one.startswith("user: See\n<")
    assert len(one) == len(other) < 100


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("text", "text"),
        ([1, 2], [1, 2]),
        (["a", "bbb", "cc"], "bbb"),
        ([[1], [1, 2]], [1, 2]),
        ([], None),
        (None, None),
        (7, None),
        ([None, {}], None),
    ],
)
def test_completion_prompt(prompt, expected) -> None:
    assert completion_of({"prompt": prompt}) == expected
    assert completion_of({"input": prompt}) == expected
    assert completion_of({}) is None


def test_body_without_chat_is_none() -> None:
    for messages in (None, "text", 7, {}):
        assert conversation_of({"messages": messages}) is None
    assert flatten(7) == ""


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["role", "content", "tool_calls", "name", "text", "type", "function"])
messages = st.lists(values | st.dictionaries(names, values), max_size=4)


@given(messages | values, values, values)
def test_conversation_never_raises_on_any_body(some, tools, prompt) -> None:
    body = {"messages": some, "tools": tools, "chat_template_kwargs": tools}
    chat = conversation_of(body)
    assert chat is None or isinstance(chat.text(), str)
    assert isinstance(completion_of({"prompt": prompt}), str | list | None)


def test_deeply_nested_body_does_not_raise() -> None:
    deep: Any = msgspec.json.decode("[" * 900 + "]" * 900)
    said = [{"role": "user", "content": [{"image": deep}, "seen"], "tool_calls": deep}]
    assert "seen" in text(said, tools=[deep])
