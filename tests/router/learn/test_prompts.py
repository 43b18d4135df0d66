import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.errors import Unavailable
from kvtier.index.fleet.prompt import Prompt, TextPrompt, TokenPrompt, Unit
from kvtier.router.learn import prompts as module
from kvtier.router.learn.prompts import ChatPrompt, PromptBuilder


class Source:
    """A TokenSource whose tokens are the bytes of the text, or that is unavailable."""

    def __init__(self, *, is_there: bool = True) -> None:
        self.is_there = is_there

    async def completion(self, text: str, model: str, *, add_special_tokens: bool) -> np.ndarray:
        return self._tokens(text + "+" * add_special_tokens)

    async def chat(self, conversation: ChatPrompt, model: str) -> np.ndarray:
        return self._tokens(conversation.text())

    def _tokens(self, text: str) -> np.ndarray:
        if not self.is_there:
            raise Unavailable("not there")
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)


def made(body: dict[str, Any], prompts: PromptBuilder | None = None, model: str = "m") -> Prompt:
    return asyncio.run((prompts or PromptBuilder({"m": Source()})).of(body, model))


def same(one: Prompt, other: Prompt) -> bool:
    return (one.unit, one.tokens, one.chain(1)) == (other.unit, other.tokens, other.chain(1))


def test_prompt_tokens_come_from_body_or_source() -> None:
    assert same(made({"prompt": [5, 6]}, PromptBuilder()), TokenPrompt([5, 6], "m"))
    assert same(made({"prompt": [[5], [5, 6]]}, PromptBuilder()), TokenPrompt([5, 6], "m"))
    assert same(made({"prompt": "ab"}), TokenPrompt(list(b"ab+"), "m"))
    assert same(made({"prompt": "ab", "add_special_tokens": False}), TokenPrompt(list(b"ab"), "m"))
    chat = {"messages": [{"role": "user", "content": "hello"}]}
    assert same(made(chat), TokenPrompt(list(b"user: hello\n"), "m"))


def test_prompt_scope_includes_model_and_salt() -> None:
    prompts = PromptBuilder({"*": Source()})
    body = {"prompt": "abcd"}
    salted = made({**body, "cache_salt": "s"}, prompts)
    assert same(salted, TokenPrompt(list(b"abcd+"), "m", salt="s"))
    chains = {
        tuple(made(body, prompts).chain(1)),
        tuple(made(body, prompts, "other").chain(1)),
        tuple(salted.chain(1)),
        tuple(made({**body, "cache_salt": 7}, prompts).chain(1)),
    }
    assert len(chains) == 3


@pytest.mark.parametrize("sources", [{}, {"m": Source(is_there=False)}])
def test_prompt_without_tokenizer_is_characters_and_logged_once(sources, caplog) -> None:
    prompts = PromptBuilder(sources)
    body = {"messages": [{"role": "user", "content": "hello you"}], "cache_salt": "s"}
    for _ in range(3):
        assert same(made(body, prompts), TextPrompt(b"user: hello you\n", "m", salt="s"))
    assert same(made({"prompt": "héllo"}, prompts), TextPrompt("héllo".encode(), "m"))
    assert len(caplog.messages) == 1
    assert "m are compared by characters" in caplog.text


def test_logged_names_and_reasons_are_one_short_line(caplog) -> None:
    class Refuses(Source):
        async def completion(self, *_: Any, **__: Any) -> np.ndarray:
            raise Unavailable("no role \r\n2026 INFO evil" + "x" * 1_000_000)

    model = "m\x1b[31m\n2026 INFO evil" + "x" * 1_000_000
    made({"prompt": "ab"}, PromptBuilder({model: Refuses()}), model)
    (said,) = caplog.messages
    assert r"prompts of m\x1b[31m\n2026 INFO evilx" in said
    assert r"no role \r\n2026 INFO evilx" in said
    assert said.isprintable()
    assert len(said) < 1000


def test_long_text_is_encoded_on_thread(monkeypatch) -> None:
    monkeypatch.setattr(module, "_INLINE_MAX", 3)
    assert same(made({"prompt": "abcdefgh"}, PromptBuilder()), TextPrompt(b"abcdefgh", "m"))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["prompt", "messages", "cache_salt", "tools"]), values))
def test_any_body_has_a_prompt(body) -> None:
    prompt = made(body)
    assert prompt.unit in (Unit.TOKEN, Unit.CHARACTER)
    prompt.chain(16)


@pytest.mark.parametrize("prompt", [[-1], [2**40], [1, "a"], [1, None], [[1, [2]]], [True, 2.5]])
def test_list_of_invalid_tokens_is_empty_prompt(prompt) -> None:
    found = made({"prompt": prompt})
    assert found.tokens == 0


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"prompt": [5, 6, 7]}, 3),
        ({"prompt": [[5], [5, 6]]}, 2),
        ({"prompt": ["no token"]}, 2),
        ({"prompt": "x" * 41}, 10),
        ({"messages": [{"role": "user", "content": "hello"}]}, 3),
        ({}, 0),
        ({"prompt": 5, "messages": "none"}, 0),
    ],
)
def test_unread_prompt_has_length_only(body: dict[str, Any], tokens: int) -> None:
    prompt = PromptBuilder({"m": Source(is_there=False)}).unread(body)
    assert (prompt.tokens, prompt.unit, prompt.chain(16)) == (tokens, Unit.CHARACTER, [])


def test_prompt_uses_canonical_model_name() -> None:
    prompts = PromptBuilder({"alias": Source()}, canonical={"alias": "main"}.get)  # type: ignore[arg-type]
    assert same(made({"prompt": "ab"}, prompts, "alias"), TokenPrompt(list(b"ab+"), "main"))
    prompts = PromptBuilder(canonical=lambda name: "main" if name == "alias" else name)
    assert same(made({"prompt": [5]}, prompts, "alias"), TokenPrompt([5], "main"))
    assert same(made({"prompt": [5]}, prompts, "sql"), TokenPrompt([5], "sql"))
    assert same(made({"prompt": "abcd"}, prompts, "alias"), TextPrompt(b"abcd", "main"))
