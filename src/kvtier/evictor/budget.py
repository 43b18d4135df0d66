"""How much has to be freed, and where: arithmetic on the usages that evictors publish.

No evictor sees the whole store. Each publishes for its shards, in `leases/usage-<shard>.json`,
how many bytes and inodes they take up, and a short list of steps from cold to hot. From all of
these lists every evictor computes the same cut and frees its own part of it. So the coldest
blocks of the whole store are evicted first, without a master.

Invariants: steps hotter than `newest_s` are never counted on; no shard has to free more than its
steps contain; a bound that is not exceeded requires nothing. A usage that cannot be read counts
as missing, which costs one scan.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from kvtier.evictor.layouts import LEASES
from kvtier.evictor.leases import ALL
from kvtier.evictor.listing import read_small
from kvtier.evictor.table import Table
from kvtier.tiers.shared.store import Store

_log = logging.getLogger(__name__)

STEPS: Final = 128
"""Steps in a usage, at most."""

ShardOfTree = tuple[str, str]
"""The names of a shard and of a tree."""

_USAGE_BYTES_MAX: Final = 1 << 30


class Amount(NamedTuple):
    """A number of bytes and of inodes, in use or to be freed."""

    size_bytes: int = 0
    inodes: int = 0

    def plus(self, other: "Amount") -> "Amount":
        """Return the sum of both."""
        return Amount(self.size_bytes + other.size_bytes, self.inodes + other.inodes)

    def minus(self, other: "Amount") -> "Amount":
        """Return the difference, with negative numbers replaced by 0."""
        return Amount(
            max(0, self.size_bytes - other.size_bytes), max(0, self.inodes - other.inodes)
        )


class Step(msgspec.Struct, frozen=True, array_like=True):
    """Some blocks of a shard that are adjacent in the order of their last use."""

    recent_s: float
    """Last use of the hottest of them."""
    size_bytes: int
    files: int


class Usage(msgspec.Struct, frozen=True):
    """The space that one tree takes up in one shard."""

    size_bytes: int = 0
    inodes: int = 0
    files: int = 0
    """Number of blocks among the inodes."""
    steps: list[Step] = []
    """The blocks that can be evicted, from cold to hot."""

    @property
    def amount(self) -> Amount:
        """The bytes and inodes in use."""
        return Amount(self.size_bytes, self.inodes)


class Watermarks(NamedTuple):
    """A pair of watermarks: above `high`, evict down to `low`. None means no bound."""

    high: int | None = None
    low: int | None = None

    def excess(self, used: int) -> int:
        """Return how much has to be freed."""
        if self.high is None or self.low is None or used <= self.high:
            return 0
        return used - self.low


class Bounds(NamedTuple):
    """The bounds of a store, of a tree, or of a file system."""

    size_bytes: Watermarks = Watermarks()
    inodes: Watermarks = Watermarks()

    def excess(self, used: Amount) -> Amount:
        """Return how much has to be freed."""
        return Amount(self.size_bytes.excess(used.size_bytes), self.inodes.excess(used.inodes))


class Plan(NamedTuple):
    """The amounts to free in each shard of each tree, by reason."""

    quota: dict[ShardOfTree, Amount]
    """For trees that exceed their own quota. It is freed first and counts for the store's bound."""
    bound: dict[ShardOfTree, Amount]
    """What then still exceeds the store's bound."""


def steps_of(table: Table, gone: npt.NDArray[np.bool_]) -> list[Step]:
    """Return the blocks that are not `gone` as at most STEPS steps of similar size, cold first."""
    recent, sizes = table.recency()[~gone], table.physical()[~gone]
    order = np.argsort(recent, kind="stable")
    parts = np.array_split(order, min(STEPS, len(order))) if len(order) else []
    return [_step(recent, sizes, part) for part in parts]


def plan(
    usages: Mapping[ShardOfTree, Usage],
    bounds: Bounds,
    quotas: Mapping[str, Bounds],
    newest_s: float,
    used: Amount | None = None,
) -> Plan:
    """Return how much each shard of each tree has to free so that all bounds are kept.

    Trees with a quota come first, then the store as a whole; space freed for quotas counts for
    the whole. `used` replaces the sum of the usages in the comparison with `bounds`, as with a
    percentage of the file system. O(steps).
    """
    by_quota: dict[ShardOfTree, Amount] = {}
    for tree, own in quotas.items():
        places = {place: usage for place, usage in usages.items() if place[1] == tree}
        excess = own.excess(_total(places.values()))
        by_quota.update(divide(excess, places, newest_s))
    total = _total(usages.values()) if used is None else used
    promised = Amount()
    for amount in by_quota.values():
        promised = promised.plus(amount)
    excess = bounds.excess(total).minus(promised)
    if excess == Amount():
        return Plan(by_quota, {})
    left = {
        place: _without(usage, by_quota.get(place, Amount())) for place, usage in usages.items()
    }
    return Plan(by_quota, divide(excess, left, newest_s))


def divide(
    excess: Amount, usages: Mapping[ShardOfTree, Usage], newest_s: float
) -> dict[ShardOfTree, Amount]:
    """Divide `excess` among the shards, by the coldest steps of all of them together."""
    shares: dict[ShardOfTree, Amount] = {}
    steps = [
        (place, step)
        for place, usage in usages.items()
        for step in usage.steps
        if step.recent_s <= newest_s
    ]
    steps.sort(key=lambda pair: (pair[1].recent_s, pair[0]))
    left = excess
    for place, step in steps:
        if left == Amount():
            break
        whole = Amount(step.size_bytes, step.files)
        share = whole if _takes_all(left, step) else left
        shares[place] = shares.get(place, Amount()).plus(share)
        left = left.minus(whole)
    return shares


def _step(
    recent: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64], rows: npt.NDArray[np.intp]
) -> Step:
    return Step(float(recent[rows[-1]]), int(sizes[rows].sum()), len(rows))


def _takes_all(needed: Amount, step: Step) -> bool:
    """Return True if all blocks of the step are needed."""
    by_bytes = needed.size_bytes > 0 and step.size_bytes <= needed.size_bytes
    return by_bytes or (needed.inodes > 0 and step.files <= needed.inodes)


def _total(usages: Iterable[Usage]) -> Amount:
    total = Amount()
    for usage in usages:
        total = total.plus(usage.amount)
    return total


def _without(usage: Usage, freed: Amount) -> Usage:
    """Return the usage with the steps that are left after `freed` was taken from the cold end."""
    steps = []
    for step in usage.steps:
        if not _takes_all(freed, step):
            left = Amount(step.size_bytes, step.files).minus(freed)
            steps.append(Step(step.recent_s, left.size_bytes, left.inodes))
        freed = freed.minus(Amount(step.size_bytes, step.files))
    return Usage(usage.size_bytes, usage.inodes, usage.files, steps)


class ShardUsages(msgspec.Struct, frozen=True):
    """The usages of one shard, as its owner publishes them after a scan and after evictions."""

    usages: Mapping[str, Usage]
    """The usages by tree."""


def put_usages(store: Store, shard: str, usages: ShardUsages) -> None:
    """Publish the usages of a shard. Raises OSError."""
    store.put(f"{LEASES}/usage-{shard}.json", msgspec.json.encode(usages))


def read_usages(store: Store, own: Mapping[str, ShardUsages]) -> dict[ShardOfTree, Usage]:
    """Return the usages of all shards: those in `own`, and the published ones of the others.

    Raises OSError.
    """
    usages: dict[ShardOfTree, Usage] = {}
    for shard in ALL:
        found = own.get(shard) or _read_usages(store, shard)
        if found is not None:
            usages.update({(shard, tree): usage for tree, usage in found.usages.items()})
    return usages


def _read_usages(store: Store, shard: str) -> ShardUsages | None:
    read = read_small(store, f"{LEASES}/usage-{shard}.json", _USAGE_BYTES_MAX)
    if read is None:
        return None
    try:
        return msgspec.json.decode(read[0], type=ShardUsages)
    except msgspec.MsgspecError as error:
        _log.warning("the usage of shard %s is damaged: %s", shard, error)
        return None
