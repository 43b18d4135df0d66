"""The contract suite for indexes of a fleet.

The router relies on the contract and not on how an index learns. An implementation is tested by
about 12 lines:

    class TestMine(FleetContract):
        def make_index(self) -> FleetIndex:
            return Mine()

        def hold(self, index: FleetIndex, replica: str, token_ids: Sequence[int]) -> None:
            index.routed(TokenPrompt(token_ids, MODEL), replica)

Needs pytest and hypothesis, which are development dependencies. No test depends on time.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvtier.index.fleet.base import DEVICE, FleetIndex, IndexSource, Match
from kvtier.index.fleet.prompt import TextPrompt, TokenPrompt

MODEL: Final = "a-model"
"""The model that the replicas of the suite serve."""
BLOCK_TOKENS: Final = 16
"""The block size of the replicas of the suite."""

_SETTINGS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.differing_executors, HealthCheck.too_slow],
)
_PATHS = st.lists(st.integers(0, 2), max_size=6)


def tokens_of(path: Sequence[int], tail: int = 0) -> list[int]:
    """Return the token ids of one block for each number of the path, and `tail` more tokens."""
    blocks = [number * 1000 + place for number in path for place in range(BLOCK_TOKENS)]
    return [*blocks, *range(90_000, 90_000 + tail)]


def prompt_of(path: Sequence[int], tail: int = 0) -> TokenPrompt:
    """Return the tokens of `tokens_of` as a prompt for MODEL."""
    return TokenPrompt(tokens_of(path, tail), MODEL)


class FleetContract(ABC):
    """The tests of a `FleetIndex`. Subclass it under a name that pytest collects."""

    @abstractmethod
    def make_index(self) -> FleetIndex:
        """Return an empty index for replicas with blocks of BLOCK_TOKENS.

        It has room for 1,000 blocks of each.
        """

    @abstractmethod
    def hold(self, index: FleetIndex, replica: str, token_ids: Sequence[int]) -> None:
        """Tell the index, by whatever it learns from, that the replica holds this prefix.

        The prefix is on the replica's device.
        """

    def test_source_is_declared(self) -> None:
        """`source` is one of the two sources."""
        assert isinstance(self.make_index().source, IndexSource)

    def test_unknown_replica_holds_nothing(self) -> None:
        """Whatever is asked, and whichever other replicas are known."""
        index = self.make_index()
        self.hold(index, "a", tokens_of([1, 2]))
        for prompt in (prompt_of([1, 2], 5), prompt_of([]), TextPrompt(b"text" * 40, MODEL)):
            (found,) = index.match(prompt, ["nobody"])
            assert found.best_tokens == 0
            assert found.total_tokens == prompt.tokens
        assert index.match(prompt_of([1]), []) == []

    def test_matches_are_in_the_order_asked(self) -> None:
        """Even where one replica is asked about twice."""
        index = self.make_index()
        self.hold(index, "a", tokens_of([1, 2, 0]))
        self.hold(index, "b", tokens_of([1]))
        found = index.match(prompt_of([1, 2, 0]), ["b", "nobody", "a", "b"])
        assert [match.best_tokens for match in found] == [16, 0, 48, 16]

    def test_only_whole_blocks_count(self) -> None:
        """Of the tokens held, and of the tokens asked for."""
        index = self.make_index()
        self.hold(index, "a", tokens_of([1, 2], tail=15))
        (found,) = index.match(prompt_of([1, 2], tail=15), ["a"])
        assert (found.tokens[DEVICE], found.total_tokens) == (32, 47)
        assert found.ratio() == pytest.approx(32 / 47)

    @_SETTINGS
    @given(st.lists(st.tuples(st.sampled_from("abc"), _PATHS), max_size=12), _PATHS)
    def test_longest_prefix_is_found(
        self, held: list[tuple[str, list[int]]], asked: list[int]
    ) -> None:
        """The match equals that of a block-by-block comparison with all that a replica holds."""
        index = self.make_index()
        for replica, path in held:
            self.hold(index, replica, tokens_of(path))
        names = ["a", "b", "c"]
        expected = [
            max((_common(path, asked) for replica, path in held if replica == name), default=0)
            for name in names
        ]
        found = index.match(prompt_of(asked, tail=3), names)
        assert [match.best_tokens for match in found] == [
            blocks * BLOCK_TOKENS for blocks in expected
        ]
        for match in found:
            _check(match)

    def test_other_model_salt_or_unit_shares_nothing(self) -> None:
        """Equal tokens are not enough for a match."""
        index = self.make_index()
        tokens = tokens_of([1, 2])
        self.hold(index, "a", tokens)
        text = b"".join(token.to_bytes(4, "little") for token in tokens)
        others = (
            TokenPrompt(tokens, "another"),
            TokenPrompt(tokens, MODEL, salt="mine"),
            TextPrompt(text, MODEL),
        )
        for other in others:
            assert index.match(other, ["a"])[0].best_tokens == 0

    def test_routed_prompt_counts_at_once(self) -> None:
        """It counts as held on the device, with its whole prefix, by that replica alone."""
        index = self.make_index()
        self.hold(index, "a", tokens_of([1]))
        self.hold(index, "b", tokens_of([1]))
        index.routed(prompt_of([1, 2, 0], tail=4), "a")
        found = index.match(prompt_of([1, 2, 0, 1]), ["a", "b"])
        assert [match.tokens[DEVICE] for match in found] == [48, 16]

    def test_match_changes_nothing(self) -> None:
        """Neither for the replicas asked about nor for the others."""
        index = self.make_index()
        self.hold(index, "a", tokens_of([1, 2]))
        before = index.match(prompt_of([1, 2]), ["a"])
        index.match(prompt_of([1, 2, 2]), ["a", "nobody"])
        index.match(prompt_of([0]), ["a"])
        assert index.match(prompt_of([1, 2]), ["a"]) == before

    def test_removed_replica_holds_nothing_and_may_return(self) -> None:
        """Removal is idempotent, also for an unknown replica; the others keep what they hold."""
        index = self.make_index()
        self.hold(index, "a", tokens_of([1, 2]))
        self.hold(index, "b", tokens_of([1]))
        for _ in range(2):
            index.remove("a")
            index.remove("nobody")
        found = index.match(prompt_of([1, 2]), ["a", "b"])
        assert [match.best_tokens for match in found] == [0, 16]
        self.hold(index, "a", tokens_of([1]))
        assert index.match(prompt_of([1, 2]), ["a"])[0].best_tokens == 16

    @pytest.mark.parametrize("tokens", [-1, 0, 1, 10**18])
    def test_any_size_is_accepted(self, tokens: int) -> None:
        """For known and unknown tiers and replicas; an invalid size changes nothing."""
        index = self.make_index()
        self.hold(index, "a", tokens_of([1]))
        for tier in (DEVICE, "ram", "disk", "shared", "objectstore", "x", "y", "z", ""):
            index.resize("a", tier, tokens)
            index.resize("nobody", tier, tokens)
        _check(index.match(prompt_of([1]), ["a"])[0])
        if tokens != 1:
            assert index.match(prompt_of([1]), ["a"])[0].best_tokens == 16

    def test_replicas_may_come_and_go(self) -> None:
        """What a removed replica held is not attributed to another one."""
        index = self.make_index()
        for round_ in range(40):
            for name in range(8):
                self.hold(index, f"{round_}-{name}", tokens_of([name % 3, round_ % 3]))
            for name in range(8):
                index.remove(f"{round_}-{name}")
            (found,) = index.match(prompt_of([0, round_ % 3]), [f"{round_}-0"])
            assert found.best_tokens == 0


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count


def _check(match: Match) -> None:
    """Assert what holds for every match."""
    held = list(match.tokens.values())
    assert all(faster <= slower for faster, slower in pairwise(held))
    assert 0 <= match.best_tokens <= match.total_tokens
    assert 0.0 <= match.ratio() <= 1.0
