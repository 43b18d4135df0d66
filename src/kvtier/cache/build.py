"""Builds a `TieredCache` from settings: arena, tiers, policies and transfer engine.

Every mistake in the settings is reported here, before an engine serves. Whatever was built up
to that point is closed again.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from kvtier import plugins
from kvtier.blocks.key import KeySpace
from kvtier.blocks.layout import BlockLayout
from kvtier.cache.core import TieredCache
from kvtier.cache.residency import Residency
from kvtier.deadline import within
from kvtier.errors import InvalidSettings
from kvtier.index.local import HOLE, IDLE, NONE
from kvtier.memory.arena import Arena
from kvtier.settings import Settings
from kvtier.tiers.base import Tier
from kvtier.transfer.engine import TransferEngine

_log = logging.getLogger(__name__)

_OPEN_S = 60.0
"""Time allowed for shared storage to open at start: a dead mount never answers."""
_MAX_FILE_BYTES = 16 << 20
"""Upper bound on the size of a file that packs several blocks, so that a batch keeps several
threads busy and the unit of eviction stays small. Above about 4 MiB the per-file cost is no
longer measurable."""


def build_cache(
    settings: Settings,
    layout: BlockLayout,
    space: KeySpace,
    *,
    group_suffixes: Sequence[bytes] = (),
    on_thread_start: Callable[[], None] | None = None,
) -> TieredCache:
    """Build the cache that `settings` describe, including the blocks that its disk holds.

    `group_suffixes` are the last bytes of the keys of each KV-cache group, see `Residency`.
    `on_thread_start` runs first in every I/O thread. Maps the arena and reads the index of a
    disk that holds blocks. Raises InvalidSettings.
    """
    slots = settings.ram.capacity // layout.slot_bytes
    if slots < 2:
        raise InvalidSettings(
            f"ram.capacity: {settings.ram.capacity} bytes hold {slots} blocks of "
            f"{layout.slot_bytes} bytes; give at least {2 * layout.slot_bytes}"
        )
    builders = _tier_builders(settings, layout, space, len(group_suffixes))
    evictions = [settings.ram.eviction, *(builder.eviction for builder in builders)]
    admissions = [settings.ram.admission, *(builder.admission for builder in builders)]
    policies = [plugins.load("eviction", name) for name in evictions]
    admission_classes = [plugins.load("admission", name) for name in admissions]
    with ExitStack() as undo:
        tiers: list[Tier] = []
        for builder in builders:
            tiers.append(_open(builder))
            undo.callback(tiers[-1].close)
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
            tiers,
            layout.slot_bytes,
            settings.transfer.queue_blocks,
            on_thread_start,
            hang_s=settings.transfer.promote_deadline,
        )
        undo.callback(engine.close, 1.0)
        for number, tier in enumerate(tiers, start=1):
            # Listing shared storage could take hours: its blocks are looked up on demand.
            if not tier.capabilities.shared:
                found = adopt(residency, number, tier)
                _log.info("kvtier: %s holds %d blocks", tier.capabilities.name, found)
        cache = TieredCache(
            residency,
            tiers,
            [admission() for admission in admission_classes],
            engine,
            settings.transfer.promote_deadline,
        )
        undo.pop_all()
    return cache


def adopt(residency: Residency, number: int, tier: Tier) -> int:
    """Enter the blocks that `tier` holds from an earlier process; return their number."""
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
                # A stale listing may name a block twice.
                continue
            # Blocks that follow each other as parent and child are inserted together, so that
            # the policy reaches the leaf first. The runs keep the order in which they were
            # written, which is the best estimate of recency there is.
            if chain and index.parent[row] != last:
                residency.insert(chain, number)
                chain = {}
            chain[row] = None
            last = row
        residency.insert(chain, number)
        cursor = page.cursor
        if cursor is None:
            break
    residency.events.clear()
    return residency.resident[number]


class _TierBuilder(NamedTuple):
    """The constructor call and the policies of one lower tier."""

    setting: str
    """The setting that names its location, for error messages."""
    build: Callable[[], Tier]
    admission: str
    eviction: str = "lru"
    is_remote: bool = False
    """Opening it may hang, so it is opened under a timeout."""


def _tier_builders(
    settings: Settings, layout: BlockLayout, space: KeySpace, groups: int
) -> list[_TierBuilder]:
    """Return the builders of the configured lower tiers, from the fastest to the slowest."""
    builders: list[_TierBuilder] = []
    disk, shared = settings.disk, settings.shared
    if disk is not None:
        build = partial(
            plugins.load("tiers", "disk"),
            Path(disk.path),
            disk.capacity,
            layout,
            space,
            io_threads=disk.io_threads,
            direct=disk.direct_io,
            on_mismatch=disk.on_mismatch,
        )
        builders.append(_TierBuilder("disk.path", build, disk.admission, disk.eviction))
    if shared is not None:
        build = partial(
            plugins.load("tiers", "shared"),
            Path(shared.path),
            layout,
            space,
            durability=shared.durability,
            direct=shared.direct_io,
            io_threads=shared.io_threads,
            known_blocks=shared.known_blocks,
            recheck_s=shared.recheck,
            key_file=Path(shared.key_file) if shared.key_file else None,
            **_packing(shared.tokens_per_file, layout, groups),
        )
        builders.append(_TierBuilder("shared.path", build, shared.admission, is_remote=True))
    bucket = settings.objectstore
    if bucket is not None:
        build = partial(
            plugins.load("tiers", "objectstore"),
            bucket.url,
            layout,
            space,
            io_threads=bucket.io_threads,
            known_blocks=bucket.known_blocks,
            recheck_s=bucket.recheck,
            key_file=Path(bucket.key_file) if bucket.key_file else None,
            **_packing(bucket.tokens_per_file, layout, groups),
        )
        builders.append(_TierBuilder("objectstore.url", build, bucket.admission, is_remote=True))
    return builders


def _open(builder: _TierBuilder) -> Tier:
    if not builder.is_remote:
        return builder.build()
    try:
        return within(_OPEN_S, builder.build, lambda tier: tier.close())
    except TimeoutError as error:
        raise InvalidSettings(
            f"{builder.setting}: {error}; check that the storage is mounted and responding, or "
            "remove the tier"
        ) from error


def _packing(tokens_per_file: int, layout: BlockLayout, groups: int) -> dict[str, Any]:
    """Return the arguments that tell a shared tier how to pack blocks into segments.

    With several KV-cache groups a prefix is no unbroken chain of blocks, because some groups
    keep only windows or states: each block gets a segment of its own.
    """
    if groups > 1:
        return {"segment_blocks": 1, "is_prefix": False}
    return {"segment_blocks": blocks_per_segment(tokens_per_file, layout)}


def blocks_per_segment(tokens_per_file: int, layout: BlockLayout) -> int:
    """Return the largest number of blocks in a segment of a shared tier, at least 1."""
    return max(
        1,
        min(tokens_per_file // layout.tokens_per_block, _MAX_FILE_BYTES // layout.slot_bytes),
    )
