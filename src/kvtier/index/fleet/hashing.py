"""Hashes of all prefixes of a prompt at once: sums with secret factors.

The state after `n` numbers is `seed(scope) + sum((number[i] + 1) * factor[i])` modulo 2**64, and
the hash is its upper 60 bits. So all prefixes of 100,000 tokens come from one multiplication and
one running sum, and whoever knows the state of a parent goes on from it with a child's tokens.
The one is added because a number of 0 would leave no trace of itself.

Why the upper 60 bits: those of a sum of products are the strongest, and a Python int of 60 bits
takes 32 bytes where one of 64 takes 48. The factors are drawn when the process starts: nobody
outside can aim for a collision. By chance two prefixes collide once in about 2**40 pairs, and
the price would be a worse choice, never a wrong answer.

Invariant: the same secret gives the same hashes, however far the factors have grown.
"""

import functools
import hashlib
from collections.abc import Sequence
from operator import mul
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from kvtier.clock import unique_id

NUMBERS_MAX: Final = 1 << 20
"""Longer prompts are hashed up to here; no model reads more."""

_GROWTH: Final = 1 << 16
"""Factors drawn at a time: half a MiB, under a millisecond."""
_MASK: Final = (1 << 64) - 1
_SHIFT: Final = 4
_FOUR: Final = np.uint64(_SHIFT)
_SEEDS_MAX: Final = 1024
_FEW: Final = 64
"""Up to so many numbers, plain Python is faster than numpy."""

Numbers = npt.NDArray[np.uint32]


class Scope(msgspec.Struct, frozen=True):
    """What must be equal besides the tokens for a replica to use what it holds."""

    model: str
    """The adapter's name where there is one: as requests name it."""
    salt: str = ""
    """`cache_salt` of the request."""
    unit: str = "token"


class Hasher:
    """Factors and seeds of one process. Give a secret only where a run must be repeatable.

    One thread; hashing holds no state but the factors, which grow on demand (1 ms for 65,536).
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = unique_id().encode() if secret is None else secret
        self._factors: npt.NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self._sums = self._factors
        """Of all factors up to each."""
        self._seeds: dict[Scope, int] = {}

    def seed(self, scope: Scope) -> int:
        """The state before the first number. Two microseconds, half of one where it is known."""
        found = self._seeds.get(scope)
        if found is None:
            if len(self._seeds) >= _SEEDS_MAX:
                self._seeds.clear()  # salts are the clients', and without end
            found = self._seeds[scope] = self.digest(msgspec.msgpack.encode(scope))
        return found

    def digest(self, content: bytes) -> int:
        """64 bits of anything else that tells prefixes apart, such as an image's identity."""
        hashed = hashlib.blake2b(content, digest_size=8, key=self._secret[:64])
        return int.from_bytes(hashed.digest(), "little")

    def chain(self, numbers: Numbers, seed: int, block: int) -> list[int]:
        """Hashes of the first 1, 2, ... whole blocks of `block` numbers.

        Of 100,000 numbers in about 0.1 ms. At most NUMBERS_MAX numbers count.
        """
        used = min(len(numbers), NUMBERS_MAX) // block * block
        if not used:
            return []
        self._grow(used)
        products = np.multiply(numbers[:used], self._factors[:used])
        np.add.accumulate(products, out=products)
        # The one that is added to each number comes in by the sums of the factors alone.
        states = products[block - 1 :: block] + self._sums[block - 1 : used : block]
        states += np.uint64(seed)
        states >>= _FOUR
        hashes: list[int] = states.tolist()
        return hashes

    def extend(self, state: int, position: int, numbers: Sequence[int]) -> int:
        """The state after `numbers`, of which the first is number `position` of its prompt.

        Each below 2**32. Raises ValueError past NUMBERS_MAX; the caller has looked.
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
    """What `chain` gives for a prefix that ends in this state."""
    return state >> _SHIFT


@functools.cache
def process_hasher() -> Hasher:
    """The one that prompts and indexes of this process share."""
    return Hasher()
