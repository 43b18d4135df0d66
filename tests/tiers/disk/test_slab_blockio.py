"""BlockIO: bytes are DONE only if they have the checksum of their own key."""

from pathlib import Path

import pytest

from kvtier.blocks.layout import BlockLayout
from kvtier.clock import VirtualClock
from kvtier.tiers.base import BlockMove, Outcome
from kvtier.tiers.disk.folder import DiskFolder
from kvtier.tiers.disk.slab import BlockIO, Slab
from kvtier.tiers.disk.slots import SlotMap
from kvtier.tiers.faults import FaultLog
from tests.tiers.disk.slabs import LAYOUT, SLOT_BYTES, blank, content, key, plain_folder


@pytest.fixture
def folder(tmp_path: Path):  # type: ignore[no-untyped-def]
    opened = plain_folder(tmp_path / "slab")
    yield opened
    opened.close()


def test_blockio_verifies_payload_and_ignores_padding(folder: DiskFolder) -> None:
    slots = SlotMap(8)
    slab = Slab(folder, SLOT_BYTES, 8, 4, 0)
    blockio = BlockIO(slab, slots, LAYOUT, FaultLog("here", VirtualClock()))
    blocks = [content(n) for n in range(4)]
    for block in blocks:
        block[LAYOUT.block_bytes :] = 0
    moves = [BlockMove(key(n), block) for n, block in enumerate(blocks)]
    # Slots 2 to 5 lie in two segments.
    puts = blockio.write([(2, 0), (3, 1), (4, 2), (5, 3)], moves, [None, key(0), None, None])
    assert [(put.slot, put.key, put.parent) for put in puts] == [
        (2, key(0), None),
        (3, key(1), key(0)),
        (4, key(2), None),
        (5, key(3), None),
    ]
    for put in puts:
        slots.publish(put)
    blocks[1][-1] = 255  # after the payload
    blocks[2][7] ^= 1
    slab.write(3, [blocks[1]])
    slab.write(4, [blocks[2]])
    outcomes = [Outcome.MISSING] * 4
    into = [BlockMove(key(n), blank()) for n in range(4)]
    blockio.read([(2, 0), (3, 1), (4, 2), (5, 3)], into, outcomes)
    assert outcomes == [Outcome.DONE, Outcome.DONE, Outcome.CORRUPT, Outcome.DONE]
    slab.close()


def test_blockio_verifies_block_as_large_as_its_slot(folder: DiskFolder) -> None:
    layout = BlockLayout(block_bytes=SLOT_BYTES, tokens_per_block=16)
    slots = SlotMap(4)
    slab = Slab(folder, SLOT_BYTES, 4, 4, 0)
    blockio = BlockIO(slab, slots, layout, FaultLog("here", VirtualClock()))
    [put] = blockio.write([(0, 0)], [BlockMove(key(1), content(1))], [None])
    slots.publish(put)
    changed = content(1)
    changed[-1] ^= 1
    slab.write(0, [changed])
    outcomes = [Outcome.MISSING]
    blockio.read([(0, 0)], [BlockMove(key(1), blank())], outcomes)
    assert outcomes == [Outcome.CORRUPT]
    slab.close()
