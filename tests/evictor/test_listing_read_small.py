from kvtier.evictor.listing import read_small
from kvtier.testing.memory_store import MemoryStore


def test_read_small_returns_whole_file_or_none() -> None:
    store = MemoryStore()
    stat = store.put("file", b"12345")
    assert read_small(store, "file", 5) == (b"12345", stat)
    assert read_small(store, "file", 4) is None
    assert read_small(store, "absent", 5) is None
    store.put("empty", b"")
    read = read_small(store, "empty", 0)
    assert read is not None
    assert read[0] == b""
