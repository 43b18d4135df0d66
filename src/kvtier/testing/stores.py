"""The contract suite for stores.

The shared tier relies on every sentence of `kvtier.tiers.shared.store.Store`. Each is a test here,
for the stores of kvtier and for those of others:

    class TestMine(StoreContract):
        def make_store(self, folder: Path) -> Store:
            return Mine(folder)

A bucket uses `folder` to derive a prefix of its own. Needs pytest. No test depends on time.
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
"""Names that every store rejects."""


class StoreContract(StoreRaces):
    """The tests of a store: subclass it, implement `make_store`, and run pytest."""

    def test_store_implements_protocol(self, store: Store) -> None:
        """All methods of the protocol exist."""
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
    def test_published_bytes_are_read_back_exactly(self, store: Store, sizes: list[int]) -> None:
        """Parts of any number and size are read into one buffer and into as many buffers."""
        parts = [content(number, size) for number, size in enumerate(sizes)]
        assert store.publish("a/b/file", parts)
        assert self.bytes_of(store, "a/b/file") == joined(parts)
        buffers = [blank(size) for size in sizes]
        read = store.read("a/b/file", 0, buffers)
        assert read is not None
        assert read.filled_bytes == read.stat.size == sum(sizes)
        assert joined(buffers) == joined(parts)

    def test_unaligned_memory_is_accepted(self, store: Store) -> None:
        """Whole pages that straddle pages of memory are written and read."""
        room = np.array(content(1, 3 * ALIGNMENT))
        part = room[1 : 1 + 2 * ALIGNMENT]
        assert store.publish("file", [part])
        back = blank(3 * ALIGNMENT)[1 : 1 + 2 * ALIGNMENT]
        read = store.read("file", 0, [back])
        assert read is not None
        assert read.filled_bytes == 2 * ALIGNMENT
        assert np.array_equal(back, part)

    def test_publish_of_taken_name_changes_nothing(self, store: Store) -> None:
        """The second writer gets False, also for a file that `put` made."""
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
    def test_read_of_any_range_fills_buffers(
        self, store: Store, size: int, offset: int, lengths: list[int]
    ) -> None:
        """At any offset, into any buffers; fewer bytes at the end, none outside the buffers."""
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

    def test_missing_file_is_none_or_false(self, store: Store) -> None:
        """No exception is raised, even in folders that do not exist or are files."""
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

    def test_put_creates_and_replaces(self, store: Store) -> None:
        """Longer, shorter, equally long and empty files; the result equals that of `stat`."""
        versions = set()
        for data in (b"one", b"longer than one", b"two", b"six", b"", bytes(10_000)):
            stat = store.put("a/file", data)
            assert stat == store.stat("a/file")
            assert stat.size == len(data)
            assert self.bytes_of(store, "a/file") == data
            versions.add(stat.version)
        assert len(versions) == 6
        assert self.names(store, "") == ["a/file"]

    def test_version_changes_with_every_file(self, store: Store) -> None:
        """A file that was replaced, or removed and created again, has another version."""
        versions = []
        for number in range(30):
            assert store.publish("file", [content(number, ALIGNMENT)])
            stat = store.stat("file")
            assert stat is not None
            versions.append(stat.version)
            versions.append(store.put("file", bytes(content(100 + number, ALIGNMENT))).version)
            assert store.remove("file")
        assert len(set(versions)) == len(versions)

    def test_stat_read_and_list_agree(self, store: Store) -> None:
        """They return the same `Stat`, repeatedly, while the file stays."""
        store.publish("a/file", [content(1, 5000)])
        stat = store.stat("a/file")
        assert stat is not None
        assert stat.size == 5000
        for _ in range(3):
            assert store.stat("a/file") == stat
            assert store.read("a/file", 0, [blank(10)]) == Read(stat, 10)
            assert self.listed(store, "a") == [ListEntry("a/file", stat)]

    def test_times_follow_the_order_of_writes(self, store: Store) -> None:
        """They come from the one clock of the store, whatever its resolution is."""
        times = [store.put(f"file-{number}", b"x").modified_s for number in range(5)]
        store.publish("last", [content(1, 10)])
        last = store.stat("last")
        assert last is not None
        assert [*times, last.modified_s] == sorted([*times, last.modified_s])
        assert times[0] > 1e9, "Unix seconds"

    def test_publish_neither_changes_nor_keeps_parts(self, store: Store) -> None:
        """The caller may reuse the memory as soon as `publish` returns."""
        part, again = content(1, 4 * ALIGNMENT), content(1, 4 * ALIGNMENT)
        store.publish("file", [part])
        assert np.array_equal(part, again)
        part.fill(0)
        assert self.bytes_of(store, "file") == bytes(again)

    def test_removed_file_is_gone_and_may_be_created_again(self, store: Store) -> None:
        """`remove` returns True once, then False; the name is free."""
        store.publish("a/file", [content(1, ALIGNMENT)])
        store.publish("a/other", [content(2, ALIGNMENT)])
        assert store.remove("a/file")
        assert not store.remove("a/file")
        assert store.stat("a/file") is None
        assert self.names(store, "a") == ["a/other"]
        assert store.publish("a/file", [content(3, ALIGNMENT)])
        assert self.bytes_of(store, "a/file") == bytes(content(3, ALIGNMENT))

    def test_move_renames_and_replaces(self, store: Store) -> None:
        """Into a folder that does not exist, and over a file that exists."""
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

    def test_files_outlive_closed_store(self, tmp_path: Path) -> None:
        """After closing twice and opening again: the same files with the same versions."""
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
    def test_illegal_name_raises_value_error(self, store: Store, name: str) -> None:
        """Every method raises it, and nothing is created."""
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

    def test_legal_names_are_kept_exactly(self, store: Store) -> None:
        """Every character that the contract allows works, and no two names are the same file."""
        names = ["-", "_", "0", "A.b-c_d", "a.b-c_d", "a", "a..b", "a.", "b/c/d/e/f/g", "b/c.d/e"]
        for name in names:
            assert store.publish(name, [np.frombuffer(name.encode(), np.uint8)])
        for name in names:
            assert self.bytes_of(store, name) == name.encode()
        assert self.names(store, "") == sorted(names)

    def test_list_is_in_the_order_of_whole_names(self, store: Store) -> None:
        """Whatever the folders are; the listing of one folder omits its neighbors."""
        names = ["a-b", "a.b/x", "a/b/c", "a/b/d", "a/b-", "a/b0/x", "a0", "aa/x", "B/x", "b"]
        for name in names:
            store.put(name, name.encode())
        assert self.names(store, "") == sorted(names)
        assert self.names(store, "a") == ["a/b-", "a/b/c", "a/b/d", "a/b0/x"]
        assert self.names(store, "a/b") == ["a/b/c", "a/b/d"]
        for entry in self.listed(store, ""):
            assert entry.stat == store.stat(entry.name)

    def test_list_continues_after_any_name(self, store: Store) -> None:
        """Pages of any length; `after` may be a name that exists, existed, or never did."""
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

    def test_list_page_has_cursor_until_the_end(self, store: Store) -> None:
        """`after` is None at the end, also of an empty listing."""
        for number in range(3):
            store.put(f"file-{number}", b"x")
        assert store.list("", "", 2).after == "file-1"
        assert store.list("", "", 4).after is None
        assert store.list("", "file-2").after is None
        assert store.list("", "file-2").entries == []

    def test_list_during_changes_lists_remaining_files_once(self, store: Store) -> None:
        """A file that vanishes meanwhile is no error; a new one may be listed or not."""
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
