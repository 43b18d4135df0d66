"""The suite that every store passes.

Why: the shared tier relies on each sentence of `kvtier.tiers.shared.store.Store`; here each is a
test, for our stores and for those of outsiders:

    class TestMine(StoreContract):
        def make_store(self, folder: Path) -> Store:
            return Mine(folder)

A bucket uses `folder` for a prefix of its own. Needs pytest. No test is timed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from kvtier.blocks.layout import ALIGNMENT
from kvtier.testing.samples import GUARD, blank, content, joined
from kvtier.testing.store_races import StoreRaces
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.store import ListEntry, Read, Store

REFUSED = (
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/.b",
    ".tmp-a",
    "a b",
    "a\\b",
    "a\n",
    "a\0",
    "a*",
    "ä",
)
"""Names that no store takes."""


class StoreContract(StoreRaces):
    """Subclass it, implement `make_store`, and pytest runs the suite."""

    def test_is_a_store(self, store: Store) -> None:
        """The protocol is there."""
        assert isinstance(store, Store)

    @pytest.mark.parametrize(
        "sizes",
        [
            [ALIGNMENT],
            [ALIGNMENT, 4 * ALIGNMENT, 2 * ALIGNMENT],
            [1],
            [1, 10_000, 0, ALIGNMENT - 1, ALIGNMENT],
            [ALIGNMENT, 100],
            [1 << 20, 1 << 20],
            [16] * 2500,
            [0],
            [],
        ],
        ids=["page", "pages", "byte", "odd", "tail", "large", "many", "empty", "none"],
    )
    def test_published_bytes_come_back_exactly(self, store: Store, sizes: list[int]) -> None:
        """Parts in order, of any number and size, whole, into one buffer and into as many."""
        parts = [content(number, size) for number, size in enumerate(sizes)]
        assert store.publish("a/b/file", parts)
        assert self.bytes_of(store, "a/b/file") == joined(parts)
        buffers = [blank(size) for size in sizes]
        read = store.read("a/b/file", 0, buffers)
        assert read is not None
        assert read.filled_bytes == read.stat.size == sum(sizes)
        assert joined(buffers) == joined(parts)

    def test_memory_at_any_address_will_do(self, store: Store) -> None:
        """Whole pages that lie across pages of memory are written and read as well."""
        room = np.array(content(1, 3 * ALIGNMENT))
        part = room[1 : 1 + 2 * ALIGNMENT]
        assert store.publish("file", [part])
        back = blank(3 * ALIGNMENT)[1 : 1 + 2 * ALIGNMENT]
        read = store.read("file", 0, [back])
        assert read is not None
        assert read.filled_bytes == 2 * ALIGNMENT
        assert np.array_equal(back, part)

    def test_a_taken_name_stays_what_it_is(self, store: Store) -> None:
        """The second publisher gets False and changes nothing, also behind `put`."""
        first = content(1, 2 * ALIGNMENT)
        assert store.publish("file", [first])
        before = store.stat("file")
        assert not store.publish("file", [content(2, 2 * ALIGNMENT)])
        assert store.stat("file") == before
        assert self.bytes_of(store, "file") == bytes(first)
        store.put("small", b"put")
        assert not store.publish("small", [content(2, ALIGNMENT)])
        assert self.bytes_of(store, "small") == b"put"
        assert self.names(store, "") == ["file", "small"]

    @pytest.mark.parametrize("size", [5 * ALIGNMENT, 5 * ALIGNMENT + 77])
    @pytest.mark.parametrize(
        ("offset", "lengths"),
        [
            (0, [ALIGNMENT]),
            (ALIGNMENT, [ALIGNMENT, 2 * ALIGNMENT]),
            (3 * ALIGNMENT, [ALIGNMENT, ALIGNMENT, ALIGNMENT, ALIGNMENT]),
            (100, [33, 5000, 1]),
            (ALIGNMENT, [10]),
            (5 * ALIGNMENT, [ALIGNMENT]),
            (5 * ALIGNMENT + 76, [ALIGNMENT]),
            (5 * ALIGNMENT + 77, [1]),
            (100 * ALIGNMENT, [ALIGNMENT]),
            (0, [0, ALIGNMENT]),
            (0, []),
        ],
    )
    def test_reads_of_parts(self, store: Store, size: int, offset: int, lengths: list[int]) -> None:
        """Any offset, any buffers; less at the end; nothing outside of them."""
        whole = content(3, size)
        store.publish("file", [whole])
        buffers = [np.split(blank(length + 2), [1, length + 1]) for length in lengths]
        self._read_part(store, whole, offset, [middle for _, middle, _ in buffers])
        assert all(before[0] == after[0] == GUARD for before, _, after in buffers)
        self._read_part(store, whole, offset, [blank(length) for length in lengths])

    def _read_part(
        self, store: Store, whole: Buffer, offset: int, buffers: Sequence[Buffer]
    ) -> None:
        expected = bytes(whole[offset : offset + sum(map(len, buffers))])
        read = store.read("file", offset, buffers)
        assert read == Read(store.stat("file"), len(expected))  # type: ignore[arg-type]
        assert joined(buffers)[: len(expected)] == expected

    def test_what_is_not_there(self, store: Store) -> None:
        """None and False, never an exception, also in folders that are not there or are files."""
        store.put("file", b"x")
        for name in ("absent", "no/such/file", "file/below"):
            buffer = blank(8)
            assert store.read(name, 0, [buffer]) is None
            assert bytes(buffer) == bytes([GUARD]) * 8
            assert store.stat(name) is None
            assert not store.remove(name)
            assert not store.move(name, "elsewhere/file")
        assert store.list("absent").entries == []
        assert store.list("no/such/folder").entries == []
        assert self.names(store, "") == ["file"]

    def test_put_makes_and_replaces(self, store: Store) -> None:
        """Longer, shorter, of the same length, empty; what it returns is what `stat` says."""
        versions = set()
        for data in (b"one", b"longer than one", b"two", b"six", b"", bytes(10_000)):
            stat = store.put("a/file", data)
            assert stat == store.stat("a/file")
            assert stat.size == len(data)
            assert self.bytes_of(store, "a/file") == data
            versions.add(stat.version)
        assert len(versions) == 6
        assert self.names(store, "") == ["a/file"]

    def test_versions_tell_files_apart(self, store: Store) -> None:
        """Replaced, or removed and made again with as many bytes: another version, each time."""
        versions = []
        for number in range(30):
            assert store.publish("file", [content(number, ALIGNMENT)])
            stat = store.stat("file")
            assert stat is not None
            versions.append(stat.version)
            versions.append(store.put("file", bytes(content(100 + number, ALIGNMENT))).version)
            assert store.remove("file")
        assert len(set(versions)) == len(versions)

    def test_every_way_to_a_stat_agrees(self, store: Store) -> None:
        """`stat`, `read` and `list` say the same, again and again, while the file stays."""
        store.publish("a/file", [content(1, 5000)])
        stat = store.stat("a/file")
        assert stat is not None
        assert stat.size == 5000
        for _ in range(3):
            assert store.stat("a/file") == stat
            assert store.read("a/file", 0, [blank(10)]) == Read(stat, 10)
            assert self.listed(store, "a") == [ListEntry("a/file", stat)]

    def test_times_are_in_the_order_of_the_writes(self, store: Store) -> None:
        """By the one clock of the store, whatever its resolution."""
        times = [store.put(f"file-{number}", b"x").modified_s for number in range(5)]
        store.publish("last", [content(1, 10)])
        last = store.stat("last")
        assert last is not None
        assert [*times, last.modified_s] == sorted([*times, last.modified_s])
        assert times[0] > 1e9, "Unix seconds"

    def test_memory_is_the_callers_again_at_once(self, store: Store) -> None:
        """Publishing changes no byte of the parts and keeps no reference to them."""
        part, again = content(1, 4 * ALIGNMENT), content(1, 4 * ALIGNMENT)
        store.publish("file", [part])
        assert np.array_equal(part, again)
        part.fill(0)
        assert self.bytes_of(store, "file") == bytes(again)

    def test_removed_is_gone_and_may_come_back(self, store: Store) -> None:
        """True once, then False; the name is free again."""
        store.publish("a/file", [content(1, ALIGNMENT)])
        store.publish("a/other", [content(2, ALIGNMENT)])
        assert store.remove("a/file")
        assert not store.remove("a/file")
        assert store.stat("a/file") is None
        assert self.names(store, "a") == ["a/other"]
        assert store.publish("a/file", [content(3, ALIGNMENT)])
        assert self.bytes_of(store, "a/file") == bytes(content(3, ALIGNMENT))

    def test_moved_has_another_name(self, store: Store) -> None:
        """Into a folder that is not there, and over a file that is."""
        store.publish("file", [content(1, 5000)])
        assert store.move("file", "new/folder/file")
        assert store.stat("file") is None
        assert self.bytes_of(store, "new/folder/file") == bytes(content(1, 5000))
        store.put("taken", b"x")
        assert store.move("new/folder/file", "taken")
        assert self.names(store, "") == ["taken"]
        assert self.bytes_of(store, "taken") == bytes(content(1, 5000))
        assert not store.move("new/folder/file", "taken")
        assert self.bytes_of(store, "taken") == bytes(content(1, 5000))

    def test_files_outlive_the_store(self, tmp_path: Path) -> None:
        """Closed twice and opened again: the same files with the same versions."""
        store = self.make_store(tmp_path)
        store.publish("a/file", [content(1, ALIGNMENT)])
        before = self.listed(store, "")
        store.close()
        store.close()
        store = self.make_store(tmp_path)
        assert self.listed(store, "") == before
        assert self.bytes_of(store, "a/file") == bytes(content(1, ALIGNMENT))
        store.close()

    @pytest.mark.parametrize("name", REFUSED)
    def test_names_that_are_refused(self, store: Store, name: str) -> None:
        """ValueError from every method, and nothing is made."""
        store.put("file", b"x")
        verbs: list[Callable[[], object]] = [
            lambda: store.publish(name, [content(1, 10)]),
            lambda: store.put(name, b"y"),
            lambda: store.read(name, 0, [blank(10)]),
            lambda: store.stat(name),
            lambda: store.remove(name),
            lambda: store.move(name, "to"),
            lambda: store.move("file", name),
        ]
        if name:  # the empty folder is the store itself
            verbs.append(lambda: store.list(name))
        for verb in verbs:
            with pytest.raises(ValueError, match="name"):
                verb()
        assert self.names(store, "") == ["file"]

    def test_names_that_are_taken_as_they_are(self, store: Store) -> None:
        """Everything the contract allows, and no two names are one."""
        names = ["-", "_", "0", "A.b-c_d", "a.b-c_d", "a", "a..b", "a.", "b/c/d/e/f/g", "b/c.d/e"]
        for name in names:
            assert store.publish(name, [np.frombuffer(name.encode(), np.uint8)])
        for name in names:
            assert self.bytes_of(store, name) == name.encode()
        assert self.names(store, "") == sorted(names)

    def test_listing_is_in_the_order_of_names(self, store: Store) -> None:
        """Of whole names, whatever the folders; of one folder without its neighbours."""
        names = ["a-b", "a.b/x", "a/b/c", "a/b/d", "a/b-", "a/b0/x", "a0", "aa/x", "B/x", "b"]
        for name in names:
            store.put(name, name.encode())
        assert self.names(store, "") == sorted(names)
        assert self.names(store, "a") == ["a/b-", "a/b/c", "a/b/d", "a/b0/x"]
        assert self.names(store, "a/b") == ["a/b/c", "a/b/d"]
        for entry in self.listed(store, ""):
            assert entry.stat == store.stat(entry.name)

    def test_listing_goes_on_from_anywhere(self, store: Store) -> None:
        """Pages of any length; `after` is a name that is there, was there or never was."""
        names = sorted(f"{first}/{second:02d}" for first in "acd" for second in range(7))
        names = sorted([*names, "b", "c-x", "e"])
        for name in names:
            store.put(name, b"x")
        for limit in (1, 2, 3, 7, 24, 25, 1000):
            assert self.names(store, "", limit) == names
        for after in [*names, "a", "a/", "a/03x", "c", "c/", "c/99", "c0", "zz", "0"]:
            assert self.names(store, "", 5, after) == [name for name in names if name > after]
            inside = [name for name in names if name > after and name.startswith("c/")]
            assert self.names(store, "c", 5, after) == inside

    def test_a_page_ends_with_where_to_go_on(self, store: Store) -> None:
        """None ends the listing, also that of nothing."""
        for number in range(3):
            store.put(f"file-{number}", b"x")
        assert store.list("", "", 2).after == "file-1"
        assert store.list("", "", 4).after is None
        assert store.list("", "file-2").after is None
        assert store.list("", "file-2").entries == []

    def test_listing_while_files_come_and_go(self, store: Store) -> None:
        """What stays is listed once; what vanished on the way is no error; what comes may be."""
        names = [f"a/{number:03d}" for number in range(90)]
        for name in names:
            store.put(name, b"x")
        page = store.list("", "", 10)
        listed = [entry.name for entry in page.entries]
        for name in names[15:60:2]:
            store.remove(name)
        store.put("a/zzz", b"x")
        while page.after is not None:
            page = store.list("", page.after, 10)
            listed += [entry.name for entry in page.entries]
        gone = set(names[15:60:2])
        assert listed == sorted(set(listed))
        assert set(names) - gone <= set(listed) <= {*names, "a/zzz"}
        assert not gone & set(self.names(store, ""))
