"""The journal: log and checkpoint stay within their limit and never contradict each other."""

import errno
from pathlib import Path

import pytest

from kvtier.tiers.disk import checkpoint
from kvtier.tiers.disk.folder import lock_folder
from kvtier.tiers.disk.journal import CHUNK_FRAMES, IndexJournal
from kvtier.tiers.disk.log import MAX_FRAME_BYTES, Delete, Log, Put, decode
from kvtier.tiers.disk.slots import SlotMap
from tests.tiers.disk.slabs import BrokenFiles, key


class Desk:
    """A journal and the parts that it uses."""

    def __init__(self, path: Path, limit_frames: int = CHUNK_FRAMES) -> None:
        self.files = BrokenFiles()
        self.folder = lock_folder(path, self.files)
        self.log = Log(self.folder)
        self.log.restart(1)
        self.slots = SlotMap(4096)
        self.limit_bytes = 24 + limit_frames * MAX_FRAME_BYTES
        self.journal = IndexJournal(
            self.folder, self.log, self.slots, limit_bytes=self.limit_bytes, generation=1
        )

    def put(self, *numbers: int) -> None:
        puts = [Put(number, key(number), None, bytes(16)) for number in numbers]
        self.journal.put(puts)
        for put in puts:
            self.slots.publish(put)

    def close(self) -> None:
        self.journal.close()
        self.folder.close()


@pytest.fixture
def desk(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = Desk(tmp_path / "slab")
    yield made
    made.files.errors.clear()
    made.files.short.clear()
    made.close()


def on_disk(desk: Desk) -> tuple[int, int, int]:
    """Return the checkpoint's generation and blocks, and the log's records; check they match."""
    snapshot = checkpoint.load(desk.folder)
    history = decode((desk.folder.path / "log").read_bytes())
    assert history is not None
    if snapshot is None:
        return 0, 0, len(history.records)
    assert history.generation == snapshot.generation
    return snapshot.generation, len(list(snapshot.puts)), len(history.records)


def test_log_is_folded_before_it_exceeds_its_limit(desk: Desk) -> None:
    for number in range(2000):
        desk.put(number)
        assert (desk.folder.path / "log").stat().st_size <= desk.limit_bytes
    generation, blocks, records = on_disk(desk)
    assert generation > 2
    assert blocks + records == 2000


def test_many_deletions_are_recorded_in_chunks(desk: Desk) -> None:
    for start in range(0, 1000, 100):
        desk.put(*range(start, start + 100))
    assert desk.journal.delete(range(700)) == list(range(700))
    assert desk.journal.unrecorded == []


def test_failed_deletions_stay_pending_until_recorded(desk: Desk) -> None:
    desk.put(1, 2, 3)
    desk.files.errors["write"] = errno.EIO
    for slot in (1, 2):
        with pytest.raises(OSError, match="Input/output"):
            desk.journal.delete([slot])
    assert desk.journal.unrecorded == [1, 2]
    desk.files.errors.clear()
    assert desk.journal.delete([3]) == [1, 2, 3]
    history = decode((desk.folder.path / "log").read_bytes())
    assert history is not None
    assert history.records[-3:] == [Delete(1), Delete(2), Delete(3)]


@pytest.mark.parametrize("call", ["open", "write", "sync_data", "rename", "truncate"])
def test_journal_appends_nothing_after_failed_checkpoint(desk: Desk, call: str) -> None:
    desk.put(1, 2)
    desk.files.errors[call] = errno.ENOSPC
    with pytest.raises(OSError, match="No space"):
        desk.journal.checkpoint()
    size = (desk.folder.path / "log").stat().st_size
    with pytest.raises(OSError, match="No space"):
        desk.put(3)
    assert (desk.folder.path / "log").stat().st_size == size
    desk.files.errors.clear()
    desk.put(4)
    generation, blocks, records = on_disk(desk)
    assert (blocks, records) == (2, 1)
    assert generation > 2, "each attempt must have its own generation"


def test_close_folds_log_with_records(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "slab")
    desk.close()
    assert not (tmp_path / "slab" / "checkpoint").exists()
    desk = Desk(tmp_path / "slab")
    desk.put(1)
    desk.journal.close()
    assert on_disk(desk) == (2, 1, 0)
    desk.folder.close()
