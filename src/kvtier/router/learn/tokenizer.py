"""A model's tokenizer, loaded from its folder, with a cache of the tokens of prefixes.

A conversation that continues is tokenized from where it continued. That is exact only at special
tokens, because a text is split at them before anything else: the parts before and after the split
are tokenized independently. Therefore the tokens of a text up to each of its last few special
tokens are cached by a hash of that prefix; a text without special tokens is tokenized whole.

Invariants: the result equals that of tokenizing the whole text at once; memory is bounded by
`cached_bytes`.
"""

import re
from array import array
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.prompt import Numbers

CACHED_BYTES: Final = 128 << 20
"""The default size of a TokenCache."""

_FILE: Final = "tokenizer.json"
_CACHED_CUTS: Final = 3
"""The number of prefixes cached per text, each up to one of the last special tokens. The next turn
of a conversation differs only after the special token that opens the answer."""
_ENTRY_BYTES: Final = 200
"""The overhead of one entry of a TokenCache."""


class TokenCache:
    """An LRU cache of token arrays by the hash of their text, bounded in bytes."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._entries: OrderedDict[int, Numbers] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, digest: int) -> Numbers | None:
        """Return the tokens of `digest` and mark them as recently used; None if not cached."""
        found = self._entries.get(digest)
        if found is not None:
            self._entries.move_to_end(digest)
        return found

    def put(self, digest: int, tokens: Numbers) -> None:
        """Add `tokens`, which the cache owns from now on, and evict the least recently used."""
        if digest in self._entries:
            return
        self._entries[digest] = tokens
        self.size_bytes += tokens.nbytes + _ENTRY_BYTES
        while self.size_bytes > self._capacity_bytes:
            _, evicted = self._entries.popitem(last=False)
            self.size_bytes -= evicted.nbytes + _ENTRY_BYTES


class Tokenizer:
    """The tokenizer of one model. Only one thread may use it at a time."""

    def __init__(self, folder: Path, cached_bytes: int = CACHED_BYTES) -> None:
        """Raises InvalidSettings if `folder` has no tokenizer or the library is missing."""
        try:
            from tokenizers import Tokenizer as Library
        except ImportError as error:
            raise InvalidSettings(
                "a local tokenizer needs the library tokenizers: pip install tokenizers"
            ) from error
        path = folder / _FILE
        try:
            self._library: Any = Library.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise InvalidSettings(f"{path} cannot be read: {error}") from error
        self._library.no_truncation()
        self._library.no_padding()
        self._added, self._cutting = _added(self._library)
        self._cache = TokenCache(cached_bytes)
        self.cached_tokens = 0
        """Tokens that came from the cache so far."""

    def tokens(self, text: str, *, add_special_tokens: bool) -> Numbers:
        """Return the tokens of `text`; takes about a microsecond per token that is not cached."""
        if add_special_tokens or not self._cutting:
            return self._encode([text], add_special_tokens=add_special_tokens)[0]
        cuts = [
            found.start()
            for found in self._added.finditer(text)
            if found.start() and found[0] in self._cutting
        ]
        digests = _digests(text, cuts)
        done, at = self._longest_cached(cuts, digests)
        rest = [cut for cut in cuts if cut > at]
        marks = rest[-_CACHED_CUTS:]
        bounds = [at, *marks, len(text)]
        pieces = [text[low:high] for low, high in pairwise(bounds)]
        parts = [done, *self._encode(pieces, add_special_tokens=False)]
        whole: Numbers = np.concatenate(parts)
        length = len(done)
        for cut, part in zip(marks, parts[1:], strict=False):
            length += len(part)
            # A copy, because a view would keep the whole array alive.
            self._cache.put(digests[cuts.index(cut)], whole[:length].copy())
        return whole

    def _longest_cached(self, cuts: list[int], digests: list[int]) -> tuple[Numbers, int]:
        """Return the tokens of the longest cached prefix, and where in the text it ends."""
        for cut, digest in zip(reversed(cuts), reversed(digests), strict=True):
            known = self._cache.get(digest)
            if known is not None:
                self.cached_tokens += len(known)
                return known, cut
        return np.empty(0, dtype=np.uint32), 0

    def _encode(self, pieces: list[str], *, add_special_tokens: bool) -> list[Numbers]:
        # Unlike the call for a single text, the batch call releases the interpreter lock.
        encoded = self._library.encode_batch_fast(pieces, add_special_tokens=add_special_tokens)
        # Going through an array is four times as fast; this part holds the interpreter lock.
        return [np.frombuffer(array("I", one.ids), dtype=np.uint32) for one in encoded]


def _added(library: Any) -> tuple[re.Pattern[str], frozenset[str]]:
    """Return a pattern of the added tokens, and those of them at which a text can be split.

    An added token that absorbs the spaces before it, or matches whole words only, depends on the
    text around it, so a text cannot be split there.
    """
    tokens = [token for token in library.get_added_tokens_decoder().values() if token.content]
    # Longest first, because the library prefers the longest token that matches.
    texts = sorted((token.content for token in tokens), key=len, reverse=True)
    cutting = {
        token.content
        for token in tokens
        if token.special and not (token.lstrip or token.single_word or token.normalized)
    }
    return re.compile("|".join(map(re.escape, texts))), frozenset(cutting)


def _digests(text: str, cuts: list[int]) -> list[int]:
    """Return the hash of the text before each of `cuts`."""
    digest, low, found = xxhash.xxh3_128(), 0, []
    for cut in cuts:
        digest.update(text[low:cut].encode("utf-8", "surrogatepass"))
        found.append(digest.intdigest())
        low = cut
    return found
