import pickle

import numpy as np
import pytest

pytest.importorskip("vllm.v1.kv_offload.base")

from kvtier.connectors.vllm.specs import ArenaLoadStoreSpec


def test_a_spec_arrives_whole_in_another_process() -> None:
    sent = ArenaLoadStoreSpec([3, 1, 2], arena="a", seals="s", slice_bytes=64)
    # As the engine ships it: between its own processes, never from disk or network.
    got = pickle.loads(pickle.dumps(sent))
    assert got.slots.dtype == np.int32
    assert got.slots.tolist() == [3, 1, 2]
    assert (got.arena, got.seals, got.slice_bytes) == ("a", "s", 64)
