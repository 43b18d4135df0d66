"""The one place that wires the parts: settings in, a TieredCache out.

Everything that can be wrong with the settings is found here, before an engine serves, and what
was built until then is taken down again.
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
"""For shared storage to answer at start: a dead mount never does."""
_FILE_BYTES = 16 << 20
"""Files of large blocks end here, so that a batch keeps several threads busy and what is
evicted stays small. From about 4 MiB on a file's own cost is not seen any more."""


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
    builders = _lower(settings, layout, space, len(group_suffixes))
    evictions = [settings.ram.eviction, *(lower.eviction for lower in builders)]
    admissions = [settings.ram.admission, *(lower.admission for lower in builders)]
    policies = [plugins.load("eviction", name) for name in evictions]
    admission_classes = [plugins.load("admission", name) for name in admissions]
    with ExitStack() as undo:
        tiers: list[Tier] = []
        for lower in builders:
            tiers.append(_open(lower))
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
            # What others write to is asked for when it is wanted: to list it could take hours.
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


class _Lower(NamedTuple):
    """A lower tier that the settings name, and how the cache treats it."""

    setting: str
    build: Callable[[], Tier]
    admission: str
    eviction: str = "lru"
    is_remote: bool = False
    """What it names may never answer, and must not keep an engine from starting with an error."""


def _lower(settings: Settings, layout: BlockLayout, space: KeySpace, groups: int) -> list[_Lower]:
    """From the fastest to the slowest."""
    lower: list[_Lower] = []
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
        lower.append(_Lower("disk.path", build, disk.admission, disk.eviction))
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
        lower.append(_Lower("shared.path", build, shared.admission, is_remote=True))
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
        lower.append(_Lower("objectstore.url", build, bucket.admission, is_remote=True))
    return lower


def _open(lower: _Lower) -> Tier:
    if not lower.is_remote:
        return lower.build()
    try:
        return within(_OPEN_S, lower.build, lambda tier: tier.close())
    except TimeoutError as error:
        raise InvalidSettings(
            f"{lower.setting}: {error}; see whether what it names is mounted and alive, or "
            "leave the tier out"
        ) from error


def _packing(tokens_per_file: int, layout: BlockLayout, groups: int) -> dict[str, Any]:
    """How blocks are packed. Groups that keep windows or states have no unbroken chains."""
    if groups > 1:
        return {"segment_blocks": 1, "is_prefix": False}
    return {"segment_blocks": blocks_a_file(tokens_per_file, layout)}


def blocks_a_file(tokens_per_file: int, layout: BlockLayout) -> int:
    """Blocks that a file of a shared tier holds at most; at least one."""
    return max(
        1,
        min(tokens_per_file // layout.tokens_per_block, _FILE_BYTES // layout.slot_bytes),
    )
