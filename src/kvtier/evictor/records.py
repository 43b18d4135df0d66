"""What evictors leave for each other about a shard: how full it is, and how far a scan came.

Why: who plans needs to know of the shards of others, and who takes over from a dead evictor goes
on where it stopped. `leases/usage-<shard>.json` holds the former, `leases/cursor-<shard>.bin`
the latter. Invariant: what cannot be read is as if it were not there; both are written by
evictors only, and losing either costs one scan.
"""

import logging
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from kvtier.evictor.budget import Place, Usage
from kvtier.evictor.layouts import LEASES
from kvtier.evictor.leases import ALL
from kvtier.evictor.reading import read_small
from kvtier.evictor.table import Columns, Table
from kvtier.tiers.shared.store import Store

_log = logging.getLogger(__name__)

CURSOR_LIVES_S: Final = 3600.0
"""An older one is of another time: the scan begins anew."""
_BYTES_MAX: Final = 1 << 30


class Record(msgspec.Struct, frozen=True):
    """A shard after a scan, or after an eviction."""

    usages: Mapping[str, Usage]
    """By tree."""


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """A scan that is not finished."""

    tree: str
    """The one being scanned; those before it are finished."""
    after: str
    """The last name that was seen in it."""
    tables: dict[str, Columns]
    other: dict[str, tuple[int, int]]
    """Bytes and inodes of a tree that are no blocks."""


class Resumed(NamedTuple):
    """Where to go on."""

    tree: str
    after: str
    tables: dict[str, Table]
    other: dict[str, tuple[int, int]]


def put_record(store: Store, shard: str, record: Record) -> None:
    """Raises OSError."""
    store.put(f"{LEASES}/usage-{shard}.json", msgspec.json.encode(record))


def read_usages(store: Store, but: Mapping[str, Record]) -> dict[Place, Usage]:
    """Of all shards: those in `but` are taken from there, the others read. Raises OSError."""
    usages: dict[Place, Usage] = {}
    for shard in ALL:
        record = but.get(shard) or _read_record(store, shard)
        if record is not None:
            usages.update({(shard, tree): usage for tree, usage in record.usages.items()})
    return usages


def put_progress(store: Store, shard: str, progress: Progress) -> None:
    """Raises OSError."""
    store.put(_cursor(shard), msgspec.msgpack.encode(progress))


def read_progress(store: Store, shard: str, now_s: float) -> Resumed | None:
    """Where the last owner of the shard stopped; None: begin at the beginning."""
    read = read_small(store, _cursor(shard), _BYTES_MAX)
    if read is None or read[1].modified_s < now_s - CURSOR_LIVES_S:
        return None
    try:
        found = msgspec.msgpack.decode(read[0], type=Progress)
        tables = {tree: Table.of(columns) for tree, columns in found.tables.items()}
    except (msgspec.MsgspecError, ValueError) as error:
        _log.warning("%s is damaged, the scan begins anew: %s", _cursor(shard), error)
        return None
    return Resumed(found.tree, found.after, tables, found.other)


def forget_progress(store: Store, shard: str) -> None:
    """The scan is finished. Raises OSError."""
    store.remove(_cursor(shard))


def _read_record(store: Store, shard: str) -> Record | None:
    read = read_small(store, f"{LEASES}/usage-{shard}.json", _BYTES_MAX)
    if read is None:
        return None
    try:
        return msgspec.json.decode(read[0], type=Record)
    except msgspec.MsgspecError as error:
        _log.warning("usage of shard %s cannot be read: %s", shard, error)
        return None


def _cursor(shard: str) -> str:
    return f"{LEASES}/cursor-{shard}.bin"
