"""The part of the store's suite that is about names and listings. No test is timed."""

from collections.abc import Callable

import numpy as np
import pytest

from kvtier.testing.store_suite import StoreSuite, blank, content
from kvtier.tiers.shared.store import Store

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


class NamesSuite(StoreSuite):
    """Which names there can be, and that listings have them all, in order."""

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
