"""A prompt as the indexes see it: numbers in blocks, and one hash for each prefix of them.

The hash of a prefix is multilinear (`hashing`): `seed + sum(number[i] * factor[i])` modulo
2**64, so that all prefixes of 100,000 tokens are hashed by a few vector operations, and the hash
of a longer prefix goes on from that of its parent. The factors are drawn at random when the
process starts: nobody outside can aim for a collision. A collision would cost a worse choice,
never a wrong answer.

Invariant: prompts of different units or scopes never share a hash, other than by chance.
"""

import array
import enum
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

from kvtier.index.fleet.hashing import Hasher, Numbers, Scope, process_hasher

BYTES_PER_TOKEN: Final = 4
"""Of text, by rule of thumb."""


class Unit(enum.Enum):
    """What the numbers of a prompt are."""

    TOKEN = "token"
    CHARACTER = "character"
    """Bytes of its text, where no tokenizer can be had: four make about a token."""


class Prompt(Protocol):
    """Immutable; its chains are made once for each block size."""

    @property
    def unit(self) -> Unit:
        """What its numbers are."""
        ...

    @property
    def tokens(self) -> int:
        """How long it is; an estimate where its unit is a character."""
        ...

    def chain(self, block_tokens: int) -> list[int]:
        """Hashes of its first 1, 2, ... whole blocks of `block_tokens`, the scope included.

        The scope (model, adapter, salt) is what must be equal besides the tokens for a replica
        to use what it holds.
        """
        ...


class UnreadPrompt:
    """A prompt of which nobody asks more than its length: no index is to be asked about it."""

    __slots__ = ("tokens",)

    unit: Final = Unit.CHARACTER

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def chain(self, block_tokens: int) -> list[int]:
        """Nothing."""
        return []


class _Hashed:
    """Numbers with the chains made of them so far."""

    __slots__ = ("_chains", "_hasher", "_numbers", "_seed")

    def __init__(self, numbers: Numbers, scope: Scope, hasher: Hasher | None) -> None:
        self._numbers = numbers
        self._hasher = process_hasher() if hasher is None else hasher
        self._seed = self._hasher.seed(scope)
        self._chains: dict[int, list[int]] = {}

    def chain(self, block_tokens: int) -> list[int]:
        """See Prompt. The list is kept: do not change it."""
        found = self._chains.get(block_tokens)
        if found is None:
            found = self._hasher.chain(self._numbers, self._seed, block_tokens)
            self._chains[block_tokens] = found
        return found


class TokenPrompt(_Hashed):
    """Token ids. Made in 0.4 ms from a list of 100,000, in no time from an array of uint32."""

    __slots__ = ()

    unit: Final = Unit.TOKEN

    def __init__(
        self,
        token_ids: Sequence[int] | Numbers,
        model: str,
        *,
        salt: str = "",
        hasher: Hasher | None = None,
    ) -> None:
        """`model`: as requests name it, the adapter's where there is one.

        Raises OverflowError or TypeError for ids that are no integers from 0 to 2**32 - 1.
        """
        if isinstance(token_ids, np.ndarray):
            numbers = token_ids.astype(np.uint32, copy=False)
        else:
            numbers = np.frombuffer(array.array("I", token_ids), dtype=np.uint32)
        super().__init__(numbers, Scope(model, salt), hasher)

    @property
    def tokens(self) -> int:
        """How many."""
        return len(self._numbers)


class TextPrompt(_Hashed):
    """Text where no tokenizer can be had: a word of four bytes of UTF-8 stands for a token.

    The last bytes that make no whole word do not count. Never equal to a TokenPrompt.
    """

    __slots__ = ()

    unit: Final = Unit.CHARACTER

    def __init__(
        self, text: bytes, model: str, *, salt: str = "", hasher: Hasher | None = None
    ) -> None:
        whole = len(text) // BYTES_PER_TOKEN
        numbers = np.frombuffer(text, dtype=np.dtype("<u4"), count=whole)
        super().__init__(numbers, Scope(model, salt, Unit.CHARACTER.value), hasher)

    @property
    def tokens(self) -> int:
        """An estimate."""
        return len(self._numbers)
