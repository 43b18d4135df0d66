"""Reading whole small files of a store, within a limit.

Why: what evictors and readers leave for each other is written by strangers; a file that claims
to be small and is not must not fill this process's memory.
"""

import numpy as np

from kvtier.tiers.shared.store import Stat, Store


def read_small(store: Store, name: str, limit_bytes: int) -> tuple[bytes, Stat] | None:
    """All of a file and its Stat; None where there is none, or one longer than `limit_bytes`.

    Raises OSError.
    """
    stat = store.stat(name)
    if stat is None or stat.size > limit_bytes:
        return None
    buffer = np.zeros(stat.size, np.uint8)
    read = store.read(name, 0, [buffer])
    if read is None or read.stat.size != read.filled_bytes:
        return None
    return bytes(buffer[: read.filled_bytes]), read.stat
