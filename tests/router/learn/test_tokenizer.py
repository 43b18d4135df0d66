import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier.errors import InvalidSettings
from kvtier.router.learn.tokenizer import Tokenizer
from tests.router.learn.folder import make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("model"))


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer._library.encode(text, add_special_tokens=False).ids


pieces = st.sampled_from(
    [
        "<|im_start|>",
        "<|im_end|>",
        "\n",
        "user",
        " ",
        "  fox",
        "äö",
        "<strip>",
        "<|im_",
        "end|>",
        "1",
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.lists(st.lists(pieces, max_size=12), min_size=1, max_size=5))
def test_tokens_equal_those_of_whole_text(folder, data) -> None:
    tokenizer = Tokenizer(folder)
    text = ""
    for more in data:
        text += "".join(more)
        for asked in (text, text + "<|im_start|>assistant\n", text):
            tokens = tokenizer.tokens(asked, add_special_tokens=False)
            assert tokens.dtype == np.uint32
            assert tokens.tolist() == whole(tokenizer, asked)


def test_continued_conversation_is_tokenized_from_cached_prefix(folder) -> None:
    tokenizer = Tokenizer(folder)
    text = "<|im_start|>user\nwhat is the weather?<|im_end|>\n"
    tokenizer.tokens(text + "<|im_start|>assistant\n", add_special_tokens=False)
    assert tokenizer.cached_tokens == 0
    text += "<|im_start|>assistant\nthe fox jumps<|im_end|>\n"
    tokens = tokenizer.tokens(
        text + "<|im_start|>user\nagain<|im_end|>\n", add_special_tokens=False
    )
    first = whole(tokenizer, "<|im_start|>user\nwhat is the weather?<|im_end|>\n")
    assert tokenizer.cached_tokens == len(first)
    assert len(tokens) > 2 * len(first) - 10


def test_plain_prompt_gets_special_tokens(folder) -> None:
    tokenizer = Tokenizer(folder)
    tokens = tokenizer.tokens("the fox", add_special_tokens=True).tolist()
    assert tokens == [tokenizer._library.token_to_id("<bos>"), *whole(tokenizer, "the fox")]
    assert tokenizer.tokens("", add_special_tokens=False).tolist() == []


def test_token_cache_of_tokenizer_is_bounded(folder) -> None:
    tokenizer = Tokenizer(folder, cached_bytes=2000)
    for number in range(50):
        text = f"<|im_start|>{number}<|im_end|>" * 5
        assert tokenizer.tokens(text, add_special_tokens=False).tolist() == whole(tokenizer, text)
        held = sum(tokens.nbytes + 200 for tokens in tokenizer._cache._entries.values())
        assert held == tokenizer._cache.size_bytes <= 2000


def test_folder_without_tokenizer_is_an_error(tmp_path) -> None:
    with pytest.raises(InvalidSettings, match=r"tokenizer\.json"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidSettings, match="cannot be read"):
        Tokenizer(tmp_path)
