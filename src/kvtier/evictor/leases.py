"""Leases of shards, kept in the store, without a master and without synchronized clocks.

A shard's lease is the file `leases/<shard>.<epoch>` with the highest epoch. It is published
exclusively, never changes, and names its owner. An owner is alive as long as its heartbeat
`leases/beat-<owner>`, which it writes repeatedly, is younger than the lease time by the store's
clock; the current time of that clock is the stamp of an evictor's own heartbeat. To take over the
shard of a dead owner, or a free shard, an evictor publishes the next epoch.

Invariants: an owner relies on its leases for VALID_PART of the lease time, counted from the start
of its last heartbeat by its own monotonic clock, so it stops before another evictor may take
over; only the rates of clocks have to agree, not the times they show. An expired lease is never
resumed: its owner takes the next epoch, or another evictor does. A new epoch is relied on only
after a listing has shown, once it was published, that there is no higher one.
"""

import logging
import re
from typing import Final

import numpy as np

from kvtier.clock import Clock, unique_id
from kvtier.errors import Fenced
from kvtier.evictor.layouts import LEASES, SHARDS
from kvtier.evictor.listing import files, read_small
from kvtier.tiers.shared.store import Store

_log = logging.getLogger(__name__)

REST: Final = "rest"
"""The shard of all files outside of the sixteen: journals, orphans, unknown files."""
ALL: Final = (*SHARDS, REST)
LEASE_S: Final = 60.0
VALID_PART: Final = 0.6
"""The part of the lease time for which an owner relies on its leases."""

_BEATS: Final = 4
"""Heartbeats within the lease time."""
_EPOCHS_KEPT: Final = 3
"""Old epochs that are kept, so that a suspended owner finds its next epoch taken."""
_OWNER_BYTES_MAX: Final = 256
_NAME = re.compile(rf"{LEASES}/([0-9a-f]|{REST})\.([0-9]{{10}})")
_FREE = "nobody"


class Leases:
    """The leases of one evictor. Used by one thread.

    Every method raises OSError if the store refuses a call.
    """

    def __init__(
        self, store: Store, clock: Clock, lease_s: float = LEASE_S, owner: str | None = None
    ) -> None:
        """Start without leases. `owner` is a unique name of 16 hex digits, by default random."""
        self._store = store
        self._clock = clock
        self._lease_s = lease_s
        self.owner = owner or unique_id()[:16]
        self._beat = f"{LEASES}/beat-{self.owner}"
        self._beaten_s = -float("inf")
        self._store_s = 0.0
        self._epochs: dict[str, int] = {}
        self.fenced = 0
        """Number of leases that were lost since the start."""

    @property
    def owned(self) -> list[str]:
        """The shards whose lease this evictor holds, in order."""
        if not self._are_valid():
            return []
        return [shard for shard in ALL if shard in self._epochs]

    def epoch(self, shard: str) -> int:
        """Return the epoch of the lease of `shard`. Raises Fenced if it is not held."""
        if shard not in self.owned:
            raise Fenced(f"the lease of shard {shard} is lost")
        return self._epochs[shard]

    def now_s(self) -> float:
        """Write a heartbeat and return its time by the store's clock."""
        self._put_beat()
        return self._store_s

    def keep(self, shard: str) -> None:
        """Renew the leases if a heartbeat is due. Called often; rarely touches the store.

        Raises Fenced if another evictor holds the lease of `shard`, or if it has expired.
        """
        if self._are_valid() and self._clock.now_s() - self._beaten_s > self._lease_s / _BEATS:
            try:
                self.renew()
            except OSError:
                if not self._are_valid():
                    raise  # Until then the last heartbeat counts; the store may only be full.
        if not self._are_valid() or shard not in self._epochs:
            self._lose(shard)
            raise Fenced(f"the lease of shard {shard} is lost")

    def balance(self) -> list[str]:
        """Take free shards up to a fair share, release those beyond it, and return all owned.

        Costs a few listings, and two calls for each lease that changes hands.
        """
        self.renew()
        highest = self._highest()
        owners = {shard: self._owner_of(shard, epoch) for shard, epoch in highest.items()}
        alive = {owner for owner in {*owners.values()} if self._is_alive(owner)}
        alive |= self._beating()
        share = -(-len(ALL) // len(alive | {self.owner}))
        for shard in self.owned[share:]:
            self._free(shard, highest[shard])
        for shard in self._from_own_start():
            if len(self._epochs) >= share or not self._are_valid():
                break
            if shard not in self._epochs and owners.get(shard) not in alive - {self.owner}:
                self._take(shard, highest.get(shard, 0) + 1)
        for shard, owner in owners.items():
            # A lease that expired while this evictor was suspended still has its name. Others do
            # not take it while its owner is alive, so it is marked as free.
            if owner == self.owner and shard not in self._epochs:
                self._publish(shard, highest[shard] + 1, _FREE)
        return self.owned

    def renew(self) -> None:
        """Write a heartbeat, and find out which leases other evictors have taken over."""
        self._put_beat()
        highest = self._highest()
        for shard, epoch in list(self._epochs.items()):
            if highest.get(shard, 0) != epoch:
                self._lose(shard)

    def release(self) -> None:
        """Release all leases, so that others can take over at once."""
        self._epochs.clear()
        self._store.remove(self._beat)

    def _are_valid(self) -> bool:
        return self._clock.now_s() - self._beaten_s < self._lease_s * VALID_PART

    def _put_beat(self) -> None:
        """Write a heartbeat, which counts from the time before it was sent.

        If writing took too long, all leases are lost: before it arrived, another evictor may have
        taken over.
        """
        began_s = self._clock.now_s()
        self._store_s = self._store.put(self._beat, self.owner.encode()).modified_s
        if not self._are_valid():
            self._lose_all()
        self._beaten_s = began_s

    def _lose(self, shard: str) -> None:
        if self._epochs.pop(shard, None) is not None:
            self.fenced += 1
            _log.warning("the lease of shard %s has expired, or another evictor took it", shard)

    def _lose_all(self) -> None:
        for shard in list(self._epochs):
            self._lose(shard)

    def _highest(self) -> dict[str, int]:
        highest: dict[str, int] = {}
        for found in files(self._store, LEASES):
            if matched := _NAME.fullmatch(found.name):
                shard, epoch = matched[1], int(matched[2])
                highest[shard] = max(highest.get(shard, 0), epoch)
        return highest

    def _beating(self) -> set[str]:
        """Return the owners with a fresh heartbeat, with or without leases."""
        start = f"{LEASES}/beat-"
        return {
            found.name.removeprefix(start)
            for found in files(self._store, LEASES)
            if found.name.startswith(start) and self._is_fresh(found.modified_s)
        }

    def _owner_of(self, shard: str, epoch: int) -> str:
        read = read_small(self._store, _name(shard, epoch), _OWNER_BYTES_MAX)
        return _FREE if read is None else read[0].decode("ascii", "replace")

    def _is_alive(self, owner: str) -> bool:
        """Check one heartbeat by name, because a listing may miss a file being replaced."""
        if not re.fullmatch(r"[0-9a-f]{16}", owner):
            return False
        stat = self._store.stat(f"{LEASES}/beat-{owner}")
        return stat is not None and self._is_fresh(stat.modified_s)

    def _is_fresh(self, beat_s: float) -> bool:
        return self._store_s - beat_s <= self._lease_s

    def _from_own_start(self) -> list[str]:
        """Return all shards, from an individual start, so that new evictors rarely collide."""
        start = int(self.owner, 16) % len(ALL)
        return [*ALL[start:], *ALL[:start]]

    def _take(self, shard: str, epoch: int) -> None:
        if not self._publish(shard, epoch, self.owner):
            return
        if self._highest().get(shard) != epoch or not self._are_valid():
            return
        self._epochs[shard] = epoch
        self._remove_before(shard, epoch - _EPOCHS_KEPT)

    def _free(self, shard: str, epoch: int) -> None:
        del self._epochs[shard]
        self._publish(shard, epoch + 1, _FREE)

    def _publish(self, shard: str, epoch: int, owner: str) -> bool:
        data = np.frombuffer(owner.encode(), np.uint8)
        return self._store.publish(_name(shard, epoch), [data])

    def _remove_before(self, shard: str, epoch: int) -> None:
        for found in list(files(self._store, LEASES)):
            matched = _NAME.fullmatch(found.name)
            if matched and matched[1] == shard and int(matched[2]) < epoch:
                self._store.remove(found.name)


def _name(shard: str, epoch: int) -> str:
    return f"{LEASES}/{shard}.{epoch:010d}"


class DryRunLeases:
    """The leases of a dry run: every shard is owned, whichever evictors work on it.

    A dry run shows what would be evicted from the whole store. It writes only a file that carries
    the store's time and is removed at once.
    """

    fenced: Final = 0

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def owned(self) -> list[str]:
        """The names of all shards: a dry run owns every one."""
        return list(ALL)

    def epoch(self, shard: str) -> int:
        """Return 0, which no lease has."""
        del shard
        return 0

    def now_s(self) -> float:
        """Return the store's time, as stamped on a file that is removed at once. Raises OSError."""
        name = f"now-{unique_id()[:16]}"  # At the top, since a folder would stay behind.
        try:
            return self._store.put(name, b"").modified_s
        finally:
            self._store.remove(name)

    def keep(self, shard: str) -> None:
        """Keep the shard, which no other evictor can take from a dry run."""

    def renew(self) -> None:
        """Renew nothing: a dry run writes no lease that could expire."""

    def balance(self) -> list[str]:
        """Return the names of all shards, which a dry run never gives to another evictor."""
        return self.owned

    def release(self) -> None:
        """Do nothing, because nothing was taken."""
