from kvtier.index.fleet.base import DEVICE, IndexSource
from kvtier.index.fleet.estimated import EstimatedIndex
from kvtier.index.fleet.events import BlocksStored
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.index.fleet.prompt import TextPrompt, TokenPrompt
from kvtier.router.learn.blended import BlendedIndex

TOKENS = list(range(64))
STORED = BlocksStored(
    names=[1, 2], parent=None, token_ids=TOKENS[:32], block_tokens=16, tier=DEVICE
)


def made() -> tuple[BlendedIndex, PreciseIndex]:
    precise = PreciseIndex()
    for name in "ab":
        precise.add(name, "m")
    return BlendedIndex(EstimatedIndex(block_tokens=16), precise), precise


def held(index: BlendedIndex, names: str = "ab") -> list[int]:
    prompt = TokenPrompt(TOKENS, "m")
    return [match.best_tokens for match in index.match(prompt, list(names))]


def test_blended_index_uses_estimate_until_first_event() -> None:
    index, _ = made()
    index.routed(TokenPrompt(TOKENS, "m"), "a")
    assert held(index) == [64, 0]
    assert index.source is IndexSource.PRECISE


def test_blended_index_uses_precise_match_of_complete_replica() -> None:
    index, precise = made()
    index.routed(TokenPrompt(TOKENS, "m"), "a")
    index.routed(TokenPrompt(TOKENS[:48], "m"), "b")
    precise.begin("a")
    precise.apply("a", [STORED])
    assert held(index) == [32, 48]
    assert held(index, "ba") == [48, 32]
    assert held(index, "a") == [32]


def test_blended_index_uses_longer_match_after_missed_events() -> None:
    index, precise = made()
    index.routed(TokenPrompt(TOKENS[:16], "m"), "a")
    index.routed(TokenPrompt(TOKENS, "m"), "b")
    for name in "ab":
        precise.apply(name, [STORED])
    assert held(index) == [32, 64]
    precise.begin("b")
    assert held(index) == [32, 32]
    precise.reset("b")
    assert held(index) == [32, 64]


def test_blended_index_matches_characters_with_estimate() -> None:
    index, precise = made()
    precise.apply("a", [STORED])
    prompt = TextPrompt(b"x" * 640, "m")
    index.routed(prompt, "a")
    assert [match.best_tokens for match in index.match(prompt, ["a", "b"])] == [160, 0]


def test_blended_index_uses_estimate_after_reset_until_next_event() -> None:
    index, precise = made()
    precise.apply("a", [STORED])
    precise.reset("a")
    assert held(index) == [0, 0]


def test_blended_index_resizes_and_removes_in_both() -> None:
    index, precise = made()
    precise.apply("a", [STORED])
    index.routed(TokenPrompt(TOKENS, "m"), "b")
    index.remove("a")
    index.remove("b")
    assert held(index) == [0, 0]
    index.resize("b", DEVICE, 16)
    index.routed(TokenPrompt(TOKENS, "m"), "b")
    assert held(index, "b") == [16]
