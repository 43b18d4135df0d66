"""A prompt as the indexes see it: numbers in blocks, and one hash for each prefix of them.

The hash of a prefix is a sum with secret factors. The state after `n` numbers is
`seed(scope) + sum((number[i] + 1) * factor[i])` modulo 2**64, and the hash is its upper 60 bits.
So all prefixes of 100,000 tokens come from one multiplication and one running sum, and the state
of a parent block is enough to continue with the tokens of its child. The 1 is added so that a
number of 0 changes the state, too.

The upper 60 bits are used because they are the strongest of a sum of products, and because a
Python int of 60 bits takes 32 bytes where one of 64 bits takes 48. The factors are drawn when the
process starts, so a client cannot construct a collision. By chance, two prefixes collide once in
about 2**40 pairs; the cost is a worse routing decision, never a wrong answer.

Invariants: the same secret gives the same hashes, however many factors have been drawn; prompts
of different units or scopes share a hash only by chance.
"""

import array
import enum
import functools
import hashlib
from collections.abc import Sequence
from operator import mul
from typing import Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from kvtier.clock import unique_id

NUMBERS_MAX: Final = 1 << 20
"""Longer prompts are hashed up to here; no model reads more."""
BYTES_PER_TOKEN: Final = 4
"""The length of a token of text, by rule of thumb."""

_GROWTH: Final = 1 << 16
"""Factors drawn at a time: half a MiB, in less than a millisecond."""
_MASK: Final = (1 << 64) - 1
_SHIFT: Final = 4
_FOUR: Final = np.uint64(_SHIFT)
_SEEDS_MAX: Final = 1024
_FEW: Final = 64
"""Up to this many numbers, plain Python is faster than NumPy."""

Numbers = npt.NDArray[np.uint32]


class Scope(msgspec.Struct, frozen=True):
    """What must be equal besides the tokens, for a replica to reuse the blocks that it holds."""

    model: str
    """The model's name in requests, or the adapter's name if there is one."""
    salt: str = ""
    """The request's `cache_salt`."""
    unit: str = "token"


class Hasher:
    """The factors and seeds of one process. Pass a secret only to make a run repeatable.

    Not thread-safe. The factors are drawn on demand (1 ms for 65,536) and are the only state.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = unique_id().encode() if secret is None else secret
        self._factors: npt.NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self._sums = self._factors
        """By position: the sum of all factors up to there."""
        self._seeds: dict[Scope, int] = {}

    def seed(self, scope: Scope) -> int:
        """Return the state before the first number. Takes 2 us, or 0.5 us for a known scope."""
        found = self._seeds.get(scope)
        if found is None:
            if len(self._seeds) >= _SEEDS_MAX:
                self._seeds.clear()  # Clients choose the salts, so their number has no bound.
            found = self._seeds[scope] = self.digest(msgspec.msgpack.encode(scope))
        return found

    def digest(self, content: bytes) -> int:
        """Return 64 bits for whatever else distinguishes prefixes, such as an image's identity."""
        hashed = hashlib.blake2b(content, digest_size=8, key=self._secret[:64])
        return int.from_bytes(hashed.digest(), "little")

    def chain(self, numbers: Numbers, seed: int, block: int) -> list[int]:
        """Return the hashes of the first 1, 2, ... whole blocks of `block` numbers.

        Takes about 0.1 ms for 100,000 numbers. Numbers beyond NUMBERS_MAX are ignored.
        """
        used = min(len(numbers), NUMBERS_MAX) // block * block
        if not used:
            return []
        self._grow(used)
        products = np.multiply(numbers[:used], self._factors[:used])
        np.add.accumulate(products, out=products)
        # The sums of the factors account for the 1 that is added to each number.
        states = products[block - 1 :: block] + self._sums[block - 1 : used : block]
        states += np.uint64(seed)
        states >>= _FOUR
        hashes: list[int] = states.tolist()
        return hashes

    def extend(self, state: int, position: int, numbers: Sequence[int]) -> int:
        """Return the state after `numbers`, the first of which is at `position` of its prompt.

        Each number is below 2**32. Raises ValueError beyond NUMBERS_MAX; callers check before.
        """
        end = position + len(numbers)
        if end > NUMBERS_MAX:
            raise ValueError("prompts are hashed up to NUMBERS_MAX numbers")
        self._grow(end)
        factors = self._factors[position:end]
        if len(numbers) <= _FEW:
            plain: list[int] = factors.tolist()
            added: int = sum(map(mul, numbers, plain)) + sum(plain)
            return (state + added) & _MASK
        products = np.array(numbers, dtype=np.uint64)
        products += np.uint64(1)
        products *= factors
        return (state + int(products.sum(dtype=np.uint64))) & _MASK

    def _grow(self, count: int) -> None:
        missing = count - len(self._factors)
        if missing <= 0:
            return
        parts = [self._factors]
        drawn = len(self._factors) // _GROWTH
        for number in range(drawn, drawn - (-missing // _GROWTH)):
            stream = hashlib.shake_128(self._secret + number.to_bytes(8, "little"))
            parts.append(np.frombuffer(stream.digest(8 * _GROWTH), dtype=np.uint64))
        self._factors = np.concatenate(parts)
        self._sums = np.add.accumulate(self._factors)


def hash_of(state: int) -> int:
    """Return the hash that `Hasher.chain` gives for a prefix that ends in this state."""
    return state >> _SHIFT


@functools.cache
def process_hasher() -> Hasher:
    """Return the hasher that the prompts and indexes of this process share."""
    return Hasher()


class Unit(enum.Enum):
    """The kinds of numbers that a prompt consists of."""

    TOKEN = "token"
    CHARACTER = "character"
    """Bytes of its text, if no tokenizer is available: four make about a token."""


class Prompt(Protocol):
    """An immutable prompt, whose chain is hashed once for each block size."""

    @property
    def unit(self) -> Unit:
        """The kind of its numbers."""
        ...

    @property
    def tokens(self) -> int:
        """Its length; an estimate if its unit is CHARACTER."""
        ...

    def chain(self, block_tokens: int) -> list[int]:
        """Return the hashes of its first 1, 2, ... whole blocks of `block_tokens`.

        The hashes include the scope: the model, the adapter and the salt.
        """
        ...


class UnreadPrompt:
    """A prompt of which only the length is known, for profiles that read no index and replays."""

    __slots__ = ("tokens", "unit")

    def __init__(self, tokens: int, unit: Unit = Unit.CHARACTER) -> None:
        self.tokens = tokens
        self.unit = unit

    def chain(self, block_tokens: int) -> list[int]:
        """Return an empty chain."""
        return []


class _HashedPrompt:
    """The numbers of a prompt, and the chains hashed so far."""

    __slots__ = ("_chains", "_hasher", "_numbers", "_seed")

    def __init__(self, numbers: Numbers, scope: Scope, hasher: Hasher | None) -> None:
        self._numbers = numbers
        self._hasher = process_hasher() if hasher is None else hasher
        self._seed = self._hasher.seed(scope)
        self._chains: dict[int, list[int]] = {}

    def chain(self, block_tokens: int) -> list[int]:
        """Return the hashes of the prefixes. The list is cached: do not change it."""
        found = self._chains.get(block_tokens)
        if found is None:
            found = self._hasher.chain(self._numbers, self._seed, block_tokens)
            self._chains[block_tokens] = found
        return found


class TokenPrompt(_HashedPrompt):
    """A prompt of token ids. Takes 0.4 ms from a list of 100,000, nothing from a uint32 array."""

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
        """Create a prompt for `model`: its name in requests, or the adapter's if there is one.

        Raises OverflowError or TypeError for ids that are not integers from 0 to 2**32 - 1.
        """
        if isinstance(token_ids, np.ndarray):
            numbers = token_ids.astype(np.uint32, copy=False)
        else:
            numbers = np.frombuffer(array.array("I", token_ids), dtype=np.uint32)
        super().__init__(numbers, Scope(model, salt), hasher)

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return len(self._numbers)


class TextPrompt(_HashedPrompt):
    """A prompt of text, if no tokenizer is available: four bytes of UTF-8 stand for a token.

    Trailing bytes that do not fill such a word are ignored. Never equal to a TokenPrompt.
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
        """The estimated number of tokens."""
        return len(self._numbers)
