"""The contract between the cache and whatever moves blocks for it.

Why it exists: the cache must not know whether threads move its blocks on real time
(`transfer.engine`) or a simulation does on virtual time (`testing.transfers`).
"""

from typing import Protocol

from kvtier.transfer.breaker import State
from kvtier.transfer.job import Completion, Direction, Transfer


class Transfers(Protocol):
    """Moves batches. One caller, the cache's thread; only `drain` and `close` block.

    Every block of an accepted transfer appears in exactly one completion. The memory of a move
    stays in use until then. Transfers may overtake each other, also for the same key.
    """

    @property
    def queue_blocks(self) -> int:
        """Blocks that may wait for or be in writes to one tier."""
        ...

    def submit(self, transfer: Transfer) -> bool:
        """Accept a transfer. False, and nothing happens, where it may not wait or at the end."""
        ...

    def poll(self) -> list[Completion]:
        """What has completed since the last call."""
        ...

    def cancel(self, transfer: Transfer) -> None:
        """Parts that have not begun complete with `outcomes=None`; the others run on."""
        ...

    def queued_blocks(self, tier: int, direction: Direction) -> int:
        """Blocks waiting or moving to or from lower tier `tier`."""
        ...

    def breaker(self, tier: int, direction: Direction) -> State:
        """Whether calls to lower tier `tier` pass now."""
        ...

    def drain(self, deadline_s: float) -> bool:
        """Block until nothing is queued or moving, at most `deadline_s` seconds; True if so."""
        ...

    def close(self, deadline_s: float) -> bool:
        """Cancel what has not begun and end; False if something did not return in time."""
        ...
