"""The one place that wires the parts: settings in, a TieredCache out.

Everything that can be wrong with the settings is found here, before an engine serves, and what
was built until then is taken down again.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from kvtier import plugins
from kvtier.blocks.key import KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.cache.core import TieredCache
from kvtier.cache.residency import Residency
from kvtier.errors import InvalidSettings
from kvtier.index.local import HOLE, IDLE, NONE
from kvtier.memory.arena import Arena
from kvtier.settings import Disk, Settings
from kvtier.tiers.base import Tier
from kvtier.transfer.engine import TransferEngine

_log = logging.getLogger(__name__)


def build_cache(
    settings: Settings,
    layout: BlockLayout,
    space: KeySpace,
    *,
    group_suffixes: Sequence[bytes] = (),
    on_thread_start: Callable[[], None] | None = None,
) -> TieredCache:
    """Build the cache that `settings` describe; blocks of an earlier process are found again.

    Raises InvalidSettings. Costs the mapping of the arena, and for a disk that holds blocks
    the reading of its index.
    """
    slots = settings.ram.capacity // layout.slot_bytes
    if slots < 2:
        raise InvalidSettings(
            f"ram.capacity: {settings.ram.capacity} bytes hold {slots} blocks of "
            f"{layout.slot_bytes} bytes; give at least {2 * layout.slot_bytes}"
        )
    parts = [settings.ram] + ([settings.disk] if settings.disk else [])
    policies = [plugins.load("eviction", part.eviction) for part in parts]
    admissions = [plugins.load("admission", part.admission) for part in parts]
    with ExitStack() as undo:
        tiers = [_disk(settings.disk, layout, space)] if settings.disk else []
        for tier in tiers:
            undo.callback(tier.close)
        arena = Arena.create(slots, layout.slot_bytes)
        undo.callback(arena.close)
        capacities = [slots, *(tier.capabilities.capacity_blocks for tier in tiers)]
        residency = Residency(
            arena,
            ["ram", *(tier.capabilities.name for tier in tiers)],
            [policy(capacity_rows=rows) for policy, rows in zip(policies, capacities, strict=True)],
            group_suffixes,
        )
        engine = TransferEngine(
            tiers, layout.slot_bytes, settings.transfer.queue_blocks, on_thread_start
        )
        undo.callback(engine.close, 1.0)
        for number, tier in enumerate(tiers, start=1):
            found = adopt(residency, number, tier)
            _log.info("kvtier: %s holds %d blocks", tier.capabilities.name, found)
        cache = TieredCache(
            residency,
            tiers,
            [admission() for admission in admissions],
            engine,
            settings.transfer.promote_deadline,
        )
        undo.pop_all()
    return cache


def adopt(residency: Residency, number: int, tier: Tier) -> int:
    """Put what `tier` holds from before into the index; returns how many blocks."""
    index = residency.index
    cursor: int | None = None
    while True:
        page = tier.scan(cursor)
        chain: dict[int, None] = {}
        last = NONE
        for stored in page.blocks:
            row = index.rows.get(stored.key, NONE)
            if row == NONE or index.state[row] == HOLE:
                row = index.add(stored.key, stored.parent, IDLE)
            elif index.held[row] >> number & 1 or row in chain:
                # Listed twice: a listing may be stale.
                continue
            # A run of parent and child enters as one, so that the policy meets the leaf
            # first; the runs keep the order of writing, the best guess at recency there is.
            if chain and index.parent[row] != last:
                residency.enter(chain, number)
                chain = {}
            chain[row] = None
            last = row
        residency.enter(chain, number)
        cursor = page.cursor
        if cursor is None:
            break
    residency.events.clear()
    return residency.resident[number]


def _disk(disk: Disk, layout: BlockLayout, space: KeySpace) -> Tier:
    tier: Tier = plugins.load("tiers", "disk")(
        Path(disk.path),
        disk.capacity,
        layout,
        space,
        io_threads=disk.io_threads,
        direct=disk.direct_io,
        on_mismatch=disk.on_mismatch,
    )
    return tier
