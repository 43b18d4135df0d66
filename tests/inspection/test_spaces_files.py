"""The kind of a file by its name."""

import pytest

from kvtier.inspection.spaces import CURSOR_NAME, STORE_CURSOR_NAME, FileKind, StoreLayout
from kvtier.testing.tiers import key
from kvtier.tiers.shared.format import segment_name

LAYOUT = StoreLayout(["a-space", "b-space"])
SEGMENT = segment_name(key(7))
LAST = SEGMENT.rpartition("/")[2]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a-space/manifest.json", FileKind.MANIFEST),
        (f"a-space/{SEGMENT}", FileKind.SEGMENT),
        (f"b-space/{SEGMENT}", FileKind.SEGMENT),
        (f"c-space/{SEGMENT}", FileKind.UNKNOWN),
        (f"a-space/blocks/fff/{LAST}", FileKind.MISPLACED),
        (f"a-space/blocks/{LAST}", FileKind.MISPLACED),
        (f"a-space/{LAST}", FileKind.UNKNOWN),
        ("a-space/blocks/000/0000.txt", FileKind.UNKNOWN),
        ("a-space/access/host-1-ab-00000001.log", FileKind.JOURNAL),
        ("a-space/access/summary-7.0000000012.bin", FileKind.SUMMARY),
        ("a-space/access/readme", FileKind.UNKNOWN),
        ("a-space/quarantine/00-host-1.kvt", FileKind.QUARANTINED),
        ("a-space/blocks/000/.tmp-host-1-0-ab", FileKind.TEMPORARY),
        (".tmp-host-1-0-ab", FileKind.TEMPORARY),
        ("leases/all.1", FileKind.LEASE),
        ("leases", FileKind.UNKNOWN),
        (CURSOR_NAME, FileKind.CURSOR),
        (STORE_CURSOR_NAME, FileKind.CURSOR),
        (f"a-space/{CURSOR_NAME}", FileKind.UNKNOWN),
        ("manifest.json", FileKind.UNKNOWN),
    ],
)
def test_kind_of_follows_from_the_name(name: str, place: FileKind) -> None:
    assert LAYOUT.kind_of(name) is place


@pytest.mark.parametrize(
    "folder",
    ["a-space", "a-space/blocks", "a-space/blocks/3fa", "a-space/access", "leases", "leases/x"],
)
def test_layout_looks_into_folders_of_a_store(folder: str) -> None:
    assert LAYOUT.looks_into(folder)


@pytest.mark.parametrize(
    "folder",
    ["c-space", "a-space/mine", "a-space/blocks/3FA", "a-space/blocks/3fa/x", ".snapshot"],
)
def test_layout_skips_other_folders(folder: str) -> None:
    assert not LAYOUT.looks_into(folder)


def test_share_done_grows_with_the_walk() -> None:
    names = [
        "a",
        "a-space/access/x",
        "a-space/blocks/000/x",
        "a-space/blocks/800/x",
        "a-space/blocks/fff/x",
        "a-space/manifest.json",
        "b-space/blocks/400/x",
        "b-space/quarantine/x",
        "c",
    ]
    shares = [LAYOUT.share_done(name) for name in names]
    assert shares == sorted(shares)
    assert (shares[0], shares[3], shares[6], shares[-1]) == (0.0, 0.25, 0.625, 1.0)
    assert StoreLayout([]).share_done("x") == 1.0
