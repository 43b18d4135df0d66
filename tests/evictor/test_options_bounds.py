import pytest

from kvtier.errors import InvalidSettings
from kvtier.evictor.budget import Bounds, Watermarks
from kvtier.evictor.filesystem import FileSystemUsage
from kvtier.evictor.options import byte_watermarks, inode_watermarks, quota_bounds
from tests.evictor.scenes import TREE

DISK = FileSystemUsage(1000 << 30, 0, 10_000)


def test_byte_watermarks_from_sizes() -> None:
    assert byte_watermarks("500GiB", "450GiB", DISK) == (Watermarks(500 << 30, 450 << 30), False)
    assert byte_watermarks("2097152", None, None)[0].high == 2 << 20
    assert byte_watermarks("1000B", None, DISK) == (Watermarks(1000, 900), False)
    assert byte_watermarks(None, None, DISK) == (Watermarks(), False)
    assert byte_watermarks("5TiB", None, None)[0].high == 5 << 40, (
        "a bucket has no size to compare with"
    )


def test_byte_watermarks_from_percentages() -> None:
    watermarks, of_filesystem = byte_watermarks("85%", "70.5 %", DISK)
    assert of_filesystem
    assert watermarks == Watermarks(850 << 30, 705 << 30)
    assert byte_watermarks("80%", None, DISK)[0] == Watermarks(800 << 30, 720 << 30)


@pytest.mark.parametrize(
    ("high", "low", "named"),
    [
        ("10GiB", "20GiB", "--low: 20GiB is not below --high 10GiB"),
        ("10GiB", "10GiB", "swap them"),
        ("70%", "85%", "--low: 85% is not below --high 70%"),
        ("85%", "1GiB", "different units"),
        ("2TiB", None, "--high: 2.0TiB is more than the file system has"),
        ("101%", None, "--high: '101%' is not a percentage"),
        ("0%", None, "for example 85%"),
        ("much", None, "--high: 'much' is not a size"),
        ("10GiB", "few", "--low: 'few' is not a size"),
        ("85", "70", "--high: 85 is 85 bytes; write 85% or 85GiB"),
        (None, "10GiB", "--low: --high is missing"),
    ],
)
def test_byte_watermarks_rejects_invalid_values(high: str, low: str, named: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        byte_watermarks(high, low, DISK)
    assert named in str(caught.value)


def test_byte_watermarks_rejects_percentage_of_bucket() -> None:
    with pytest.raises(InvalidSettings, match="and a bucket has none"):
        byte_watermarks("85%", None, None)


def test_inode_watermarks() -> None:
    assert inode_watermarks("1000", "500") == Watermarks(1000, 500)
    assert inode_watermarks("1000", None) == Watermarks(1000, 900)
    assert inode_watermarks(None, None) == Watermarks()
    for high, low, named in (
        ("1000", "2000", "--low-inodes: 2000 is not below --high-inodes 1000"),
        ("many", None, "--high-inodes: 'many'"),
        ("0", None, "--high-inodes: '0'"),
        (None, "5", "--low-inodes: --high-inodes is missing"),
    ):
        with pytest.raises(InvalidSettings, match=named):
            inode_watermarks(high, low)
    with pytest.raises(InvalidSettings, match="--high-inodes: 10001 is more than the file system"):
        inode_watermarks("10001", None, DISK)
    assert inode_watermarks("10001", None, FileSystemUsage(1, 0)).high == 10_001, (
        "the file system has no fixed number of inodes"
    )


def test_quota_bounds() -> None:
    assert quota_bounds([f"{TREE}=100B"], DISK) == {TREE: Bounds(Watermarks(100, 90))}
    for texts, named in (
        ([f"{TREE}"], "--quota"),
        (["model=10GiB"], "does not name a folder"),
        ([f"{TREE}=20"], f"--quota {TREE}: 20 is 20 bytes"),
        ([f"{TREE}=x"], f"--quota {TREE}: 'x' is not a size"),
        ([f"{TREE}=1GiB", f"{TREE}=2GiB"], "keep one"),
        ([f"{TREE}=2TiB"], "more than the file system"),
    ):
        with pytest.raises(InvalidSettings, match=named):
            quota_bounds(texts, DISK)
