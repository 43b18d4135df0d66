"""From how far bits reach to what the contract tells: one Match a replica.

Why a file of its own: both indexes answer alike, and replicas whose blocks differ in size are
asked in tables of their own. Invariant: every tier that the index has seen is in every answer
of a replica that it knows, the fastest first and none below the one before.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from kvtier.index.fleet.base import Match
from kvtier.index.fleet.ends import Ends, lacking
from kvtier.index.fleet.levels import LEVELS, ROUTED, Levels

Caps = Mapping[int, Mapping[int, int]]
"""By slot and level, LEVELS for what is expected: blocks before the first that is known to lack."""
_NONE: Final[Caps] = {}


def answers(
    ends: Ends,
    slots: Sequence[int | None],
    levels: Levels,
    block_tokens: int,
    total_tokens: int,
    caps: Caps = _NONE,
) -> list[Match]:
    """Of these slots, in their order; None holds nothing.

    Half a microsecond for each that differs from all others, a tenth otherwise.
    """
    # What was routed there a moment ago counts as on its way to the device.
    wanted = [(levels.name(level), lacking(1 << level | ROUTED)) for level in levels.used]
    lengths = [length * block_tokens for length in ends.lengths]
    columns = ends.columns(slots)
    known = dict.fromkeys(columns, Match({}, total_tokens))
    for column in known:
        if column is not None:
            tokens = {}
            for name, lack in wanted:
                tokens[name] = lengths[len(column.translate(None, lack))]
            known[column] = Match(tokens, total_tokens)
    found = [known[column] for column in columns]
    for at, slot in enumerate(slots if caps else ()):
        if slot is not None and slot in caps:
            found[at] = _capped(ends, slot, levels, block_tokens, total_tokens, caps[slot])
    return found


def merged(parts: Sequence[Sequence[Match]]) -> list[Match]:
    """Answers about the same replicas, of each of which one part at most knows something."""
    return [
        max(answers, key=lambda match: len(match.tokens)) for answers in zip(*parts, strict=True)
    ]


def _capped(
    ends: Ends,
    slot: int,
    levels: Levels,
    block_tokens: int,
    total_tokens: int,
    caps: Mapping[int, int],
) -> Match:
    """Of a slot that lacks blocks within its prefixes."""
    routed = ends.reach(slot, ROUTED)
    routed = min(routed, caps.get(LEVELS, routed))
    tokens = {}
    for level in levels.used:
        held = ends.reach(slot, 1 << level)
        tokens[levels.name(level)] = max(min(held, caps.get(level, held)), routed) * block_tokens
    return Match(tokens, total_tokens)
