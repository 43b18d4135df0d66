"""A prompt as the indexes see it: numbers in blocks, and one hash for each prefix of them.

The hash of a prefix is multilinear: `seed + sum(number[i] * factor[i])` modulo 2**64, so that
all prefixes of 100,000 tokens are hashed by a few vector operations, and the hash of a longer
prefix goes on from that of its parent. The factors are drawn at random when the process starts:
nobody outside can aim for a collision. A collision would cost a worse choice, never a wrong
answer.
"""

import enum
from typing import Protocol


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
