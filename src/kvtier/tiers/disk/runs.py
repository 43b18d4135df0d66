"""Batches cut into runs of neighbouring slots, each of which is one system call."""

from collections.abc import Iterator, Sequence

Place = tuple[int, int]
"""Slot, and position in the batch."""

RUN_BLOCKS_MAX = 1024
"""Buffers one preadv or pwritev takes at most (IOV_MAX)."""


def runs(places: Sequence[Place], segment_slots: int, run_blocks: int) -> Iterator[Sequence[Place]]:
    """Cut `places`, ascending by slot, where a gap or a segment ends or `run_blocks` is reached."""
    limit = min(run_blocks, RUN_BLOCKS_MAX)
    start = 0
    for end in range(1, len(places) + 1):
        if (
            end == len(places)
            or end - start == limit
            or places[end][0] != places[end - 1][0] + 1
            or places[end][0] % segment_slots == 0
        ):
            yield places[start:end]
            start = end
