"""What the scheduler tells a worker: which arena slots, one a key, in key order.

Plain data, because the engine ships it between processes. The handles let a worker in any
process of the host map the same memory.
"""

import numpy as np
import numpy.typing as npt
from vllm.v1.kv_offload.base import LoadStoreSpec


class ArenaLoadStoreSpec(LoadStoreSpec):
    """Slots of one job: int32 [keys], groups in order and keys in order inside a group."""

    def __init__(self, slots: npt.ArrayLike, *, arena: str, seals: str, slice_bytes: int) -> None:
        self.slots: npt.NDArray[np.int32] = np.asarray(slots, dtype=np.int32)
        self.arena = arena
        """`Arena.handle` of the memory the slots lie in."""
        self.seals = seals
        """`Seals.handle` of the marks the worker leaves on the slots it has filled."""
        self.slice_bytes = slice_bytes
        """Of the scheduler's `Arrangement`; a worker that disagrees refuses the job."""

    def __repr__(self) -> str:
        return f"ArenaLoadStoreSpec(slots={self.slots.tolist()})"
