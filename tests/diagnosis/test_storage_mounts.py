from pathlib import Path

import pytest

from kvtier.diagnosis.storage import Mount, disk_warning, is_local, mount_of, shared_warning

TABLE = r"""27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 0:25 / /mnt/kv rw,nosuid shared:5 - nfs4 server:/kv rw,vers=4.2,lookupcache=pos
31 27 0:26 / /mnt/kv\040two rw - tmpfs none rw
32 27 0:27 / /over rw - tmpfs none rw
33 32 0:28 / /over rw - overlay none rw
nonsense
"""


@pytest.mark.parametrize(
    ("path", "point", "kind"),
    [
        ("/nowhere/at/all", "/", "ext4"),
        ("/mnt/kv", "/mnt/kv", "nfs4"),
        ("/mnt/kv/folder", "/mnt/kv", "nfs4"),
        ("/mnt/kvm", "/", "ext4"),
        ("/mnt/kv two/x", "/mnt/kv two", "tmpfs"),
        ("/over/x", "/over", "overlay"),
    ],
)
def test_mount_of_returns_the_innermost_and_latest_mount(
    tmp_path: Path, path: str, point: str, kind: str
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    mount = mount_of(Path(path), table)
    assert mount is not None
    assert (mount.point, mount.kind) == (point, kind)


def test_mount_of_follows_links(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    (tmp_path / "link").symlink_to("/mnt/kv/x")
    mount = mount_of(tmp_path / "link", table)
    assert mount is not None
    assert mount.kind == "nfs4"
    assert {"nosuid", "lookupcache=pos"} <= mount.options


def test_mount_of_without_a_readable_table_is_none(tmp_path: Path) -> None:
    assert mount_of(tmp_path, tmp_path / "none") is None
    assert mount_of(tmp_path) is not None


def mount(kind: str, *options: str) -> Mount:
    return Mount("/", kind, frozenset(options))


@pytest.mark.parametrize(
    ("kind", "options", "shared", "disk"),
    [
        ("ext4", (), None, None),
        ("tmpfs", (), "memory of one machine", "ram.capacity uses better"),
        ("overlay", (), "container's own layer", "container's own layer"),
        ("fuse.s3fs", (), "objectstore.url", "not a local drive"),
        ("nfs4", (), "lookupcache=positive", "not a local drive"),
        ("nfs", ("lookupcache=pos",), None, "not a local drive"),
        ("nfs4", ("lookupcache=none",), None, "not a local drive"),
        ("ceph", (), None, "not a local drive"),
        ("fuse.juicefs", (), None, "not a local drive"),
        ("brandnewfs", (), None, None),
    ],
)
def test_mount_warnings_by_file_system(
    kind: str, options: tuple[str, ...], shared: str | None, disk: str | None
) -> None:
    for wanted, warning in (
        (shared, shared_warning(mount(kind, *options))),
        (disk, disk_warning(mount(kind, *options))),
    ):
        assert (warning is None) == (wanted is None)
        assert (wanted or "") in (warning or "")


def test_is_local_by_file_system() -> None:
    assert is_local(mount("xfs"))
    assert not is_local(mount("nfs4"))
