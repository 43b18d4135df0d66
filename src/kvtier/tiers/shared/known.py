"""What this process knows of a store: which block lies in which segment, and where in it.

Learnt by writing a segment or by reading its header; what is remembered is bounded, and may be
out of date, because others clean the store: whoever uses it finds out.

Safe from any thread; nothing here blocks.
"""

import threading
from collections import OrderedDict
from typing import NamedTuple

from kvtier.blocks.key import BlockKey
from kvtier.tiers.shared.format import Segment


class Place(NamedTuple):
    """Block `number` of a segment."""

    segment: Segment
    number: int


class Known:
    """Segments and their blocks, at most `capacity_blocks` of them, the latest used last."""

    def __init__(self, capacity_blocks: int) -> None:
        self._capacity = capacity_blocks
        self._segments: OrderedDict[BlockKey, Segment] = OrderedDict()
        self._places: dict[BlockKey, Place] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Blocks known."""
        return len(self._places)

    def __contains__(self, key: BlockKey) -> bool:
        """Whether a segment is known that holds the block."""
        return key in self._places

    def place(self, key: BlockKey) -> Place | None:
        """Where the block lies; it counts as used."""
        with self._lock:
            place = self._places.get(key)
            if place is not None:
                self._segments.move_to_end(place.segment.keys[0])
            return place

    def add(self, segment: Segment) -> None:
        """Remember a segment, and forget the least recently used for it."""
        first = segment.keys[0]
        with self._lock:
            self._drop(first)
            self._segments[first] = segment
            for number, key in enumerate(segment.keys):
                # A block may lie in two segments: the first one known will do.
                self._places.setdefault(key, Place(segment, number))
            while len(self._places) > self._capacity and len(self._segments) > 1:
                self._drop(next(iter(self._segments)))

    def forget(self, first: BlockKey) -> None:
        """The segment is gone."""
        with self._lock:
            self._drop(first)

    def keys(self) -> list[BlockKey]:
        """Every block known, in no order that means anything."""
        with self._lock:
            return list(self._places)

    def _drop(self, first: BlockKey) -> None:
        segment = self._segments.pop(first, None)
        if segment is None:
            return
        for key in segment.keys:
            place = self._places.get(key)
            if place is not None and place.segment is segment:
                del self._places[key]
