"""From how far bits reach to what the contract tells: one Match a replica.

Why a file of its own: both indexes answer alike, and replicas whose blocks differ in size are
asked in tables of their own. Invariant: every tier that the index has seen is in every answer
of a replica that it knows, the fastest first and none below the one before.
"""

from collections.abc import Sequence

import numpy as np

from kvtier.index.fleet.base import Match
from kvtier.index.fleet.levels import LEVELS, Levels
from kvtier.index.fleet.table import Ends


def answers(
    ends: Ends, slots: Sequence[int], levels: Levels, block_tokens: int, total_tokens: int
) -> list[Match]:
    """Of these slots, in their order. 20 us for 64 replicas, of which many hold as much."""
    used = levels.used
    names = [levels.name(level) for level in used]
    mine = ends[slots]
    # What was routed there a moment ago counts as on its way to the device.
    blocks = np.maximum(mine[:, used], mine[:, LEVELS:])
    blocks *= block_tokens
    known: dict[tuple[int, ...], Match] = {}
    found: list[Match] = []
    for row in map(tuple, blocks.tolist()):
        match = known.get(row)
        if match is None:
            tokens = dict(zip(names, row, strict=True))
            match = known[row] = Match(tokens, total_tokens)
        found.append(match)
    return found
