"""Who works on which shard: leases in the store, without a master and without trusting clocks.

A shard's lease is the file `leases/<shard>.<epoch>` with the highest epoch, published
exclusively and never changed; it names its owner. An owner lives as long as its heartbeat
`leases/beat-<owner>`, which it puts again and again, is younger than the lease time *by the
store's clock*; how late it is, is told by the time the store stamps on one's own heartbeat.
Who wants a dead or free owner's shard publishes the next epoch.

Invariants. An owner believes in its leases for BELIEVED of the lease time since it *began* its
last heartbeat, by its own monotonic clock, so it has stopped before anybody may take over; only
the rates of clocks have to agree, not what they show. Who stopped believing never resumes: it
takes the next epoch, or somebody else does. Nobody believes in an epoch before it has seen,
after publishing it, that there is none higher.
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
"""Everything that is in no shard: journals, orphans, what nobody knows."""
ALL: Final = (*SHARDS, REST)
LEASE_S: Final = 60.0
VALID_PART: Final = 0.6
_BEATS: Final = 4
"""Heartbeats within the lease time."""
_EPOCHS_KEPT: Final = 3
"""So that who was asleep for a moment finds its epoch taken."""
_OWNER_BYTES_MAX: Final = 256
_NAME = re.compile(rf"{LEASES}/([0-9a-f]|{REST})\.([0-9]{{10}})")
_FREE = "nobody"


class Leases:
    """Of one evictor. One thread. Every method may raise OSError: the store refused."""

    def __init__(
        self, store: Store, clock: Clock, lease_s: float = LEASE_S, owner: str | None = None
    ) -> None:
        """`owner`: 16 hex digits that nobody else has; made here where it is None."""
        self._store = store
        self._clock = clock
        self._lease_s = lease_s
        self.owner = owner or unique_id()[:16]
        self._beat = f"{LEASES}/beat-{self.owner}"
        self._beaten_s = -float("inf")
        self._store_s = 0.0
        self._epochs: dict[str, int] = {}
        self.fenced = 0
        """Leases that were lost since the start."""

    @property
    def owned(self) -> list[str]:
        """Shards whose lease this evictor believes to hold, in order."""
        if not self._is_valid():
            return []
        return [shard for shard in ALL if shard in self._epochs]

    def epoch(self, shard: str) -> int:
        """Under which `shard` is owned. Raises Fenced where it is not."""
        if shard not in self.owned:
            raise Fenced(f"the lease of shard {shard} is lost")
        return self._epochs[shard]

    def now_s(self) -> float:
        """The store's clock, as it stamps it on a heartbeat of ours."""
        self._put_beat()
        return self._store_s

    def keep(self, shard: str) -> None:
        """Go on with `shard`? Called often; touches the store a few times a lease.

        Raises Fenced where the lease is another's, or was not kept up in time.
        """
        if self._is_valid() and self._clock.now_s() - self._beaten_s > self._lease_s / _BEATS:
            try:
                self.renew()
            except OSError:
                if not self._is_valid():
                    raise  # until then the last heartbeat counts: the store may only be full
        if not self._is_valid() or shard not in self._epochs:
            self._lose(shard)
            raise Fenced(f"the lease of shard {shard} is lost")

    def balance(self) -> list[str]:
        """Take what nobody works on, up to a fair share, and give back what is beyond it.

        Returns what is owned now. Two calls a lease that changes hands, and a listing.
        """
        self.renew()
        highest = self._highest()
        owners = {shard: self._owner_of(shard, epoch) for shard, epoch in highest.items()}
        alive = {owner for owner in {*owners.values()} if self._lives(owner)}
        alive |= self._beating()
        share = -(-len(ALL) // len(alive | {self.owner}))
        for shard in self.owned[share:]:
            self._free(shard, highest[shard])
        for shard in self._in_my_order():
            if len(self._epochs) >= share or not self._is_valid():
                break
            if shard not in self._epochs and owners.get(shard) not in alive - {self.owner}:
                self._take(shard, highest.get(shard, 0) + 1)
        for shard, owner in owners.items():
            # Lost while this evictor slept, and still in its name: others wait for its death.
            if owner == self.owner and shard not in self._epochs:
                self._publish(shard, highest[shard] + 1, _FREE)
        return self.owned

    def renew(self) -> None:
        """A heartbeat, and a look whether somebody took over. Call it where work pauses."""
        self._put_beat()
        highest = self._highest()
        for shard, epoch in list(self._epochs.items()):
            if highest.get(shard, 0) != epoch:
                self._lose(shard)

    def release(self) -> None:
        """Stop, and let others take over at once."""
        self._epochs.clear()
        self._store.remove(self._beat)

    def _is_valid(self) -> bool:
        return self._clock.now_s() - self._beaten_s < self._lease_s * VALID_PART

    def _put_beat(self) -> None:
        """A heartbeat counts from before it was sent. One that took too long keeps nothing alive.

        Before it arrived somebody might have found this evictor dead.
        """
        began_s = self._clock.now_s()
        self._store_s = self._store.put(self._beat, self.owner.encode()).modified_s
        if not self._is_valid():
            self._lose_all()
        self._beaten_s = began_s

    def _lose(self, shard: str) -> None:
        if self._epochs.pop(shard, None) is not None:
            self.fenced += 1
            _log.warning("the lease of shard %s was not kept up, or went to another", shard)

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
        """Owners with a fresh heartbeat, whether they hold a lease or not."""
        start = f"{LEASES}/beat-"
        return {
            found.name.removeprefix(start)
            for found in files(self._store, LEASES)
            if found.name.startswith(start) and self._is_fresh(found.modified_s)
        }

    def _owner_of(self, shard: str, epoch: int) -> str:
        read = read_small(self._store, _name(shard, epoch), _OWNER_BYTES_MAX)
        return _FREE if read is None else read[0].decode("ascii", "replace")

    def _lives(self, owner: str) -> bool:
        """Asked by name: a listing may miss a file that is being replaced."""
        if not re.fullmatch(r"[0-9a-f]{16}", owner):
            return False
        stat = self._store.stat(f"{LEASES}/beat-{owner}")
        return stat is not None and self._is_fresh(stat.modified_s)

    def _is_fresh(self, beat_s: float) -> bool:
        return self._store_s - beat_s <= self._lease_s

    def _in_my_order(self) -> list[str]:
        """Each evictor begins elsewhere, so that two that start together rarely collide."""
        start = int(self.owner, 16) % len(ALL)
        return [*ALL[start:], *ALL[:start]]

    def _take(self, shard: str, epoch: int) -> None:
        if not self._publish(shard, epoch, self.owner):
            return
        if self._highest().get(shard) != epoch or not self._is_valid():
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
    """Stands where `Leases` would."""

    fenced: Final = 0

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def owned(self) -> list[str]:
        """All."""
        return list(ALL)

    def epoch(self, shard: str) -> int:
        """None that anybody else has."""
        del shard
        return 0

    def now_s(self) -> float:
        """The store's clock, as it stamps it on a file that is gone at once. Raises OSError."""
        name = f"now-{unique_id()[:16]}"  # at the top: a folder would stay
        try:
            return self._store.put(name, b"").modified_s
        finally:
            self._store.remove(name)

    def keep(self, shard: str) -> None:
        """Nobody can take it away."""

    def renew(self) -> None:
        """Nothing to keep up."""

    def balance(self) -> list[str]:
        """All."""
        return self.owned

    def release(self) -> None:
        """Nothing was taken."""
