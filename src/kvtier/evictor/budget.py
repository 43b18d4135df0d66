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
ShardOfTree = tuple[str, str]
"""Shard and tree."""
_BYTES_MAX: Final = 1 << 30


class Amount(NamedTuple):
    """Bytes and inodes, to hold or to free."""

    size_bytes: int = 0
    inodes: int = 0

    def plus(self, other: "Amount") -> "Amount":
        """Of both."""
        return Amount(self.size_bytes + other.size_bytes, self.inodes + other.inodes)

    def minus(self, other: "Amount") -> "Amount":
        """What is left; never less than nothing."""
        return Amount(
            max(0, self.size_bytes - other.size_bytes), max(0, self.inodes - other.inodes)
        )


class Step(msgspec.Struct, frozen=True, array_like=True):
    """A run of blocks in the order of their last use."""

    recent_s: float
    """Of the hottest of them."""
    size_bytes: int
    files: int


class Usage(msgspec.Struct, frozen=True):
    """What lies in one shard of one tree."""

    size_bytes: int = 0
    inodes: int = 0
    files: int = 0
    """Blocks among the inodes."""
    steps: list[Step] = []

    @property
    def amount(self) -> Amount:
        """Bytes and inodes."""
        return Amount(self.size_bytes, self.inodes)


class Watermarks(NamedTuple):
    """A pair of watermarks: above `high`, free down to `low`. None: no bound."""

    high: int | None = None
    low: int | None = None

    def excess(self, used: int) -> int:
        """How much has to go."""
        if self.high is None or self.low is None or used <= self.high:
            return 0
        return used - self.low


class Bounds(NamedTuple):
    """The bounds of a store, of a tree, or of a file system."""

    size_bytes: Watermarks = Watermarks()
    inodes: Watermarks = Watermarks()

    def excess(self, used: Amount) -> Amount:
        """How much has to go."""
        return Amount(self.size_bytes.excess(used.size_bytes), self.inodes.excess(used.inodes))


class Plan(NamedTuple):
    """What each shard of each tree has to free, by the reason it has to."""

    quota: dict[ShardOfTree, Amount]
    """Of trees that exceed a quota of their own; goes first, and counts for the whole."""
    bound: dict[ShardOfTree, Amount]
    """What is still too much then."""


def steps_of(table: Table, gone: npt.NDArray[np.bool_]) -> list[Step]:
    """At most STEPS runs of about equally many blocks that are not `gone`, cold to hot."""
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
    """What each shard of each tree has to free so that every bound is kept.

    First the trees with a quota of their own, then the store as a whole; what the quotas free
    counts for the whole. `used`: what is held against `marks` where it is not the sum of the
    usages, as with percentages of a file system. O(steps).
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
    left = {place: _behind(usage, by_quota.get(place, Amount())) for place, usage in usages.items()}
    return Plan(by_quota, divide(excess, left, newest_s))


def divide(
    excess: Amount, usages: Mapping[ShardOfTree, Usage], newest_s: float
) -> dict[ShardOfTree, Amount]:
    """Cut `excess` from the coldest steps of all places together."""
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
    """Whether `needed` is not met before the last block of the step."""
    by_bytes = needed.size_bytes > 0 and step.size_bytes <= needed.size_bytes
    return by_bytes or (needed.inodes > 0 and step.files <= needed.inodes)


def _total(usages: Iterable[Usage]) -> Amount:
    total = Amount()
    for usage in usages:
        total = total.plus(usage.amount)
    return total


def _behind(usage: Usage, freed: Amount) -> Usage:
    """What is left of the steps once `freed` is taken from the cold end."""
    steps = []
    for step in usage.steps:
        if not _takes_all(freed, step):
            left = Amount(step.size_bytes, step.files).minus(freed)
            steps.append(Step(step.recent_s, left.size_bytes, left.inodes))
        freed = freed.minus(Amount(step.size_bytes, step.files))
    return Usage(usage.size_bytes, usage.inodes, usage.files, steps)


class ShardUsages(msgspec.Struct, frozen=True):
    """A shard after a scan, or after an eviction."""

    usages: Mapping[str, Usage]
    """By tree."""


def put_usages(store: Store, shard: str, record: ShardUsages) -> None:
    """Raises OSError."""
    store.put(f"{LEASES}/usage-{shard}.json", msgspec.json.encode(record))


def read_usages(store: Store, but: Mapping[str, ShardUsages]) -> dict[ShardOfTree, Usage]:
    """Of all shards: those in `but` are taken from there, the others read. Raises OSError."""
    usages: dict[ShardOfTree, Usage] = {}
    for shard in ALL:
        record = but.get(shard) or _read_usages(store, shard)
        if record is not None:
            usages.update({(shard, tree): usage for tree, usage in record.usages.items()})
    return usages


def _read_usages(store: Store, shard: str) -> ShardUsages | None:
    read = read_small(store, f"{LEASES}/usage-{shard}.json", _BYTES_MAX)
    if read is None:
        return None
    try:
        return msgspec.json.decode(read[0], type=ShardUsages)
    except msgspec.MsgspecError as error:
        _log.warning("usage of shard %s cannot be read: %s", shard, error)
        return None
