"""A model's tokenizer from its folder: texts become tokens here, on threads.

A conversation that goes on is tokenized from where it went on. That is exact only at special
tokens, which cut a text before anything else is done with it: what stands before one and what
begins with it are tokenized apart. So the tokens of a text are remembered up to its last few
special tokens, by a hash of the text before them; a text without any is tokenized whole.

Invariants: the tokens are those of tokenizing the text at once; memory is bounded by
`cached_bytes`; the event loop is held for no more than it takes to hash a text.
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
from kvtier.index.fleet.hashing import Numbers

CACHED_BYTES: Final = 128 << 20

_FILE: Final = "tokenizer.json"
_REMEMBERED: Final = 3
"""Special tokens of each text, from the end, up to which its tokens are remembered: the next
turn differs after the one that opens the answer."""
_ENTRY_BYTES: Final = 200


class Tokenizer:
    """Of one model. One thread at a time."""

    def __init__(self, folder: Path, cached_bytes: int = CACHED_BYTES) -> None:
        """Raises InvalidSettings where the folder has none, or the library is missing."""
        try:
            from tokenizers import Tokenizer as Library
        except ImportError as error:
            raise InvalidSettings(
                "a local tokenizer needs the library tokenizers: pip install tokenizers"
            ) from error
        path = folder / _FILE
        try:
            self._library: Any = Library.from_file(str(path))
        except Exception as error:  # the library raises nothing more precise
            raise InvalidSettings(f"{path} cannot be read: {error}") from error
        self._library.no_truncation()
        self._library.no_padding()
        self._added, self._cutting = _added(self._library)
        self._known: OrderedDict[int, Numbers] = OrderedDict()
        self._known_bytes = 0
        self._cached_bytes = cached_bytes
        self.remembered_tokens = 0
        """Tokens that were remembered and not made again."""

    def tokens(self, text: str, *, add_special_tokens: bool) -> Numbers:
        """All of it: about a microsecond a token that is new."""
        if add_special_tokens or not self._cutting:
            return self._encode([text], add_special_tokens=add_special_tokens)[0]
        cuts = [
            found.start()
            for found in self._added.finditer(text)
            if found.start() and found[0] in self._cutting
        ]
        digests = _digests(text, cuts)
        done, at = self._longest(cuts, digests)
        rest = [cut for cut in cuts if cut > at]
        marks = rest[-_REMEMBERED:]
        bounds = [at, *marks, len(text)]
        pieces = [text[low:high] for low, high in pairwise(bounds)]
        parts = [done, *self._encode(pieces, add_special_tokens=False)]
        whole: Numbers = np.concatenate(parts)
        length = len(done)
        for cut, part in zip(marks, parts[1:], strict=False):
            length += len(part)
            self._remember(digests[cuts.index(cut)], whole[:length])
        return whole

    def _longest(self, cuts: list[int], digests: list[int]) -> tuple[Numbers, int]:
        """The longest beginning that is remembered, and where in the text it ends."""
        for cut, digest in zip(reversed(cuts), reversed(digests), strict=True):
            known = self._known.get(digest)
            if known is not None:
                self._known.move_to_end(digest)
                self.remembered_tokens += len(known)
                return known, cut
        return np.empty(0, dtype=np.uint32), 0

    def _remember(self, digest: int, tokens: Numbers) -> None:
        if digest in self._known:
            return
        # A copy: a view would keep the whole array alive.
        self._known[digest] = tokens.copy()
        self._known_bytes += tokens.nbytes + _ENTRY_BYTES
        while self._known_bytes > self._cached_bytes:
            _, old = self._known.popitem(last=False)
            self._known_bytes -= old.nbytes + _ENTRY_BYTES

    def _encode(self, pieces: list[str], *, add_special_tokens: bool) -> list[Numbers]:
        """The batch call lets other threads run, which the single one does not."""
        encoded = self._library.encode_batch_fast(pieces, add_special_tokens=add_special_tokens)
        # By way of an array: four times as fast, and nobody else runs meanwhile.
        return [np.frombuffer(array("I", one.ids), dtype=np.uint32) for one in encoded]


def _added(library: Any) -> tuple[re.Pattern[str], frozenset[str]]:
    """Tokens that are found before anything else, and those of them that cut a text there.

    One that takes the blanks before it along, or must be a word, does not.
    """
    tokens = [token for token in library.get_added_tokens_decoder().values() if token.content]
    # The longest first: where one begins with another, the library takes the longest.
    texts = sorted((token.content for token in tokens), key=len, reverse=True)
    cutting = {
        token.content
        for token in tokens
        if token.special and not (token.lstrip or token.single_word or token.normalized)
    }
    return re.compile("|".join(map(re.escape, texts))), frozenset(cutting)


def _digests(text: str, cuts: list[int]) -> list[int]:
    """Of the text before each cut."""
    digest, low, found = xxhash.xxh3_128(), 0, []
    for cut in cuts:
        digest.update(text[low:cut].encode("utf-8", "surrogatepass"))
        found.append(digest.intdigest())
        low = cut
    return found
