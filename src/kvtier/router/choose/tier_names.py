"""Names and order of the tiers, and the tokens that each tier adds to a match.

Configurations call tiers `gpu` and `cpu`, or hint at one in the name of an index
(`cpuPrefixProducer`), while indexes call them `device` and `ram`. Invariant: every plugin reads a
match through these functions, so that tokens held in a faster tier are not counted again for a
slower one.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from kvtier.index.fleet.base import DEVICE, Match
from kvtier.router.choose.base import Candidate

BY_SPEED: Final = (DEVICE, "ram", "disk", "shared", "objectstore")
"""The known tiers, from the fastest to the slowest; unknown tiers rank behind them."""

_ALIASES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("gpu", "hbm", "tpu", "xpu"), DEVICE),
    **dict.fromkeys(("cpu", "host", "dram"), "ram"),
    **dict.fromkeys(("ssd", "nvme"), "disk"),
    **{name: name for name in BY_SPEED},
}
_SAY_OTHER_THINGS: Final = frozenset({"host", "shared"})
"""Words that hint at no tier: consider `multi-host-scorer` and `shared-prefix-scorer`."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_RANK: Final = {tier: rank for rank, tier in enumerate(BY_SPEED)}
_NOTHING: Final = Match({}, 0)


def tier_called(name: str) -> str | None:
    """Return the tier that `name` is an alias of (`ram` for `cpu`); None for an empty name.

    Raises ValueError for an unknown name.
    """
    if not name:
        return None
    try:
        return _ALIASES[name.lower()]
    except KeyError:
        raise ValueError(f"{name!r} is not a tier; write one of {', '.join(BY_SPEED)}") from None


def tier_hinted(name: str) -> str | None:
    """Return the tier that a plugin's name hints at: `ram` for `cpuPrefixProducer`.

    Returns None if the name hints at no tier or at several.
    """
    words = {word.lower() for word in _WORD.findall(name)}
    tiers = {_ALIASES[word] for word in words - _SAY_OTHER_THINGS if word in _ALIASES}
    return tiers.pop() if len(tiers) == 1 else None


def match_of(candidate: Candidate, index: str | None) -> Match:
    """Return the candidate's match in `index`; None for the longest match per tier of all."""
    matches = candidate.matches
    if index is not None:
        return matches.get(index, _NOTHING)
    if len(matches) == 1:
        return next(iter(matches.values()))
    return longest(matches.values())


def tokens_in(match: Match, tier: str | None) -> int:
    """Return the tokens held in `tier` or a faster one; None for any tier."""
    if tier is None:
        return match.best_tokens
    rank = _RANK.get(tier)
    if rank is None:
        return match.tokens.get(tier, 0)
    return max(
        (held for name, held in match.tokens.items() if _RANK.get(name, len(_RANK)) <= rank),
        default=0,
    )


def added_tokens(match: Match) -> list[tuple[str, int]]:
    """Return, from the fastest tier on, the tokens that each adds to what faster tiers hold."""
    tokens = match.tokens
    added = []
    held = known = 0
    for tier in BY_SPEED:
        if tier in tokens:
            known += 1
            if tokens[tier] > held:
                added.append((tier, tokens[tier] - held))
                held = tokens[tier]
    if known == len(tokens):
        return added
    for tier in sorted(tokens):
        if tier not in _RANK and tokens[tier] > held:
            added.append((tier, tokens[tier] - held))
            held = tokens[tier]
    return added


def longest(matches: Iterable[Match]) -> Match:
    """Return a match with the longest match per tier of all `matches`."""
    tokens: dict[str, int] = {}
    total = 0
    for match in matches:
        total = max(total, match.total_tokens)
        for tier, held in match.tokens.items():
            if held > tokens.get(tier, 0):
                tokens[tier] = held
    return Match(tokens, total)
