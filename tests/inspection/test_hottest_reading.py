"""Reading journals, summaries and headers for the most-read prefixes, and read errors."""

import errno
from typing import TypeVar

import pytest

from kvtier.blocks.checksum import Xxh3
from kvtier.evictor.journals import encode_summary, summary_name
from kvtier.evictor.table import Use
from kvtier.inspection.hottest import ReadHistory
from kvtier.inspection.segments import rules_of
from kvtier.inspection.survey import Chain
from kvtier.testing.memory_store import MemoryStore
from kvtier.tiers.shared.manifest import manifest_of
from kvtier.tiers.shared.store import Read, Stat
from tests.inspection.buckets import fill, name_of, spoil, view_of
from tests.inspection.stores import NAME, SPACE, keys, spread

RULES = rules_of(manifest_of(SPACE, Xxh3()), Xxh3())
HOT, WARM = spread(2)
Some = TypeVar("Some", bound=MemoryStore)


def filled(store: Some) -> Some:
    """Write two chains: one read twice; the other read once, with one more read already folded."""
    for first, reads in ((HOT, 2), (WARM, 1)):
        fill(store, keys(4, int.from_bytes(first[:4], "big")), reads=reads)
    store.put(summary_name(NAME, "0", 1), encode_summary({WARM: Use(9.0, 1)}, 0))
    return store


def chains(store: MemoryStore) -> tuple[list[Chain], list[str], list[str]]:
    """Return the chains, the names of unreadable files, and the names of files read."""
    refused: list[str] = []
    files: list[str] = []
    view = view_of(store)
    journals = [each for each in view.entries(f"{NAME}/access") if each.name.endswith(".log")]
    history = ReadHistory(view, NAME, lambda name, error: refused.append(name), files.append)
    return history.chains(journals, RULES, SPACE, 10), refused, files


def test_journals_and_summaries_are_counted() -> None:
    found, refused, files = chains(filled(MemoryStore()))
    assert {(chain.first_key, chain.reads) for chain in found} == {(HOT.hex(), 2), (WARM.hex(), 2)}
    assert refused == []
    # Both are read equally often: their order depends on which thread read its journal first.
    segments = sorted(name for name in files if name.endswith(".kvt"))
    assert segments == sorted([name_of(HOT), name_of(WARM)])
    assert sum(name.endswith(".log") for name in files) == 3


def test_missing_and_broken_segments_are_left_out() -> None:
    store = filled(MemoryStore())
    fill(store, keys(4, 1 << 30), reads=3)
    spoil(store, keys(1, 1 << 30)[0], 20)
    store.remove(name_of(HOT))
    found, refused, _ = chains(store)
    assert [chain.first_key for chain in found] == [WARM.hex()]
    assert refused == []


class RefusingStore(MemoryStore):
    """A view that fails to read some files."""

    number = errno.EACCES
    ending = ""

    def stat(self, name: str) -> Stat | None:
        self._check(name)
        return super().stat(name)

    def read(self, name: str, offset: int, buffers) -> Read | None:
        self._check(name)
        return super().read(name, offset, buffers)

    def _check(self, name: str) -> None:
        if self.ending and name.endswith(self.ending):
            raise OSError(self.number, "no")


@pytest.mark.parametrize(("ending", "refused"), [(".log", 3), (".bin", 1), (".kvt", 0)])
def test_unreadable_file_does_not_hide_others(ending: str, refused: int) -> None:
    store = filled(RefusingStore())
    store.ending = ending
    found, names, _ = chains(store)
    assert len(names) == refused
    assert [chain.reads for chain in found] == {".log": [1], ".bin": [2, 1], ".kvt": []}[ending]


@pytest.mark.parametrize("ending", [".log", ".bin", ".kvt"])
def test_store_that_does_not_answer_raises(ending: str) -> None:
    store = filled(RefusingStore())
    store.ending, store.number = ending, errno.ETIMEDOUT
    with pytest.raises(TimeoutError):
        chains(store)
