import numpy as np
import pytest

from kvtier.index.fleet.prompt import Hasher, Prompt, TextPrompt, TokenPrompt, Unit


def test_token_prompt_accepts_list_range_and_array() -> None:
    chains = [
        TokenPrompt(ids, "m").chain(16)
        for ids in (list(range(100)), range(100), np.arange(100), np.arange(100, dtype=np.uint32))
    ]
    assert chains == [chains[0]] * 4
    assert len(chains[0]) == 6


def test_chain_is_hashed_once_per_block_size() -> None:
    prompt: Prompt = TokenPrompt(range(64), "m")
    assert prompt.chain(16) is prompt.chain(16)
    assert prompt.chain(32) == prompt.chain(16)[1::2]
    assert (prompt.unit, prompt.tokens) == (Unit.TOKEN, 64)


def test_prompt_shorter_than_block_has_empty_chain() -> None:
    assert TokenPrompt([], "m").chain(16) == []
    assert TokenPrompt(range(15), "m").chain(16) == []
    assert TextPrompt(b"abc", "m").chain(1) == []


def test_fixed_secret_gives_same_chain() -> None:
    hashers = [Hasher(b"replayed"), Hasher(b"replayed"), None]
    one, other, own = (TokenPrompt(range(16), "m", hasher=hasher).chain(16) for hasher in hashers)
    assert one == other != own


@pytest.mark.parametrize("ids", [[-1], [2**32], ["a"], [1.5], [None]])
def test_invalid_tokens_are_refused(ids: list) -> None:
    with pytest.raises((OverflowError, TypeError)):
        TokenPrompt(ids, "m")


def test_text_prompt_counts_words_of_four_bytes() -> None:
    prompt = TextPrompt("größer".encode() + b"!", "m")
    assert (prompt.unit, prompt.tokens) == (Unit.CHARACTER, 2)
    assert prompt.chain(1) == TextPrompt("größer".encode(), "m").chain(1)
    assert TextPrompt(b"abcd" * 64, "m").chain(16) == TextPrompt(b"abcd" * 65, "m").chain(16)


def test_scopes_share_no_hashes() -> None:
    ids = list(b"abcdabcdabcdabcd")
    prompts = [
        TokenPrompt(ids, "m"),
        TokenPrompt(ids, "n"),
        TokenPrompt(ids, "m", salt="s"),
        TextPrompt(bytes(4 * ids[:1]), "m"),
        TextPrompt(b"".join(i.to_bytes(4, "little") for i in ids), "m"),
    ]
    hashes = [hashed for prompt in prompts for hashed in prompt.chain(1)]
    assert len(set(hashes)) == len(hashes)
