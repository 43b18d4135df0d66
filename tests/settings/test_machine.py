import os
import re
import threading
from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.settings import DiskSettings, RamSettings, Settings, SharedSettings, machine
from kvtier.settings.machine import (
    Probes,
    cgroup_limit_bytes,
    check,
    check_disk,
    check_ram,
    check_shared,
    occupied_bytes,
)

GIB = 2**30
UNLIMITED_V1 = "9223372036854771712"


def describe(folder: Path, membership: str = "0::/\n", **limits: str) -> Probes:
    """A machine with 32 GiB, 24 GiB of it available; `limits` are files below the cgroup root."""
    meminfo = folder / "meminfo"
    meminfo.write_text(f"MemTotal: {32 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {24 * 2**20} kB\n")
    (folder / "membership").write_text(membership)
    for path, text in limits.items():
        file = folder / "cgroup" / path.replace("__", "/").replace("DOT", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return Probes(meminfo=meminfo, membership=folder / "membership", cgroup_root=folder / "cgroup")


def test_check_works_on_this_machine(tmp_path: Path) -> None:
    check(
        Settings(
            ram=RamSettings(capacity=4096), disk=DiskSettings(path=str(tmp_path), capacity=4096)
        )
    )


@pytest.mark.parametrize(
    ("capacity", "owner"),
    [
        (33 * GIB, r"33.0GiB is more than the 32.0GiB that this machine has"),
        (25 * GIB, r"25.0GiB is more than the 24.0GiB that is free on this machine now"),
    ],
)
def test_ram_beyond_machine_is_refused(tmp_path: Path, capacity: int, owner: str) -> None:
    probes = describe(tmp_path)
    check_ram(RamSettings(capacity=24 * GIB), probes)
    with pytest.raises(InvalidSettings, match=rf"ram.capacity: {owner}; make it smaller"):
        check_ram(RamSettings(capacity=capacity), probes)


@pytest.mark.parametrize(
    ("membership", "limits", "limit_bytes"),
    [
        ("0::/\n", {"memoryDOTmax": str(GIB)}, GIB),
        ("0::/\n", {"memoryDOTmax": "max"}, None),
        ("0::/a/b\n", {"a__memoryDOTmax": str(GIB), "a__b__memoryDOTmax": "max"}, GIB),
        ("0::/a\n", {"a__memoryDOTmax": str(2 * GIB), "memoryDOTmax": str(GIB)}, GIB),
        ("4:memory:/a\n0::/\n", {"memory__a__memoryDOTlimit_in_bytes": str(GIB)}, GIB),
        # a container sees its own limit at the root, while its path names the host's tree
        ("4:memory:/host/x\n", {"memory__memoryDOTlimit_in_bytes": str(GIB)}, GIB),
        ("4:memory:/a\n", {"memory__a__memoryDOTlimit_in_bytes": UNLIMITED_V1}, None),
        ("4:cpu,memory:/a\n", {"cpu,memory__a__memoryDOTlimit_in_bytes": str(GIB)}, GIB),
        ("3:cpuset:/\n0::/a\n", {"unified__a__memoryDOTmax": str(GIB)}, GIB),
        ("0::/../a\n", {"a__memoryDOTmax": str(GIB)}, GIB),
    ],
)
def test_tightest_cgroup_limit_counts(
    tmp_path: Path, membership: str, limits: dict[str, str], limit_bytes: int | None
) -> None:
    assert cgroup_limit_bytes(describe(tmp_path, membership, **limits)) == limit_bytes


def test_ram_beyond_container_is_refused(tmp_path: Path) -> None:
    probes = describe(tmp_path, memoryDOTmax=str(GIB))
    check_ram(RamSettings(capacity=GIB), probes)
    with pytest.raises(InvalidSettings, match=r"ram.capacity: .* limit of this container"):
        check_ram(RamSettings(capacity=GIB + 1), probes)


def test_machine_without_memory_information_is_accepted(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    check_ram(
        RamSettings(capacity=2**60), Probes(meminfo=absent, membership=absent, cgroup_root=absent)
    )


def test_disk_capacity_beyond_free_space_is_refused(tmp_path: Path) -> None:
    space = os.statvfs(tmp_path)
    capacity = space.f_blocks * space.f_frsize + GIB
    with pytest.raises(InvalidSettings, match=r"disk.capacity: .* has .* free; make it smaller"):
        check_disk(DiskSettings(path=str(tmp_path / "new" / "slab"), capacity=capacity))
    assert not (tmp_path / "new").exists()


def test_existing_slab_counts_as_free_space(tmp_path: Path) -> None:
    slab = tmp_path / "slab"
    slab.mkdir()
    (slab / "sparse").touch()
    os.truncate(slab / "sparse", GIB)
    assert occupied_bytes(slab) == 0
    (slab / "whole").write_bytes(bytes(4 * 2**20))
    os.sync()
    assert 4 * 2**20 <= occupied_bytes(slab) < 5 * 2**20
    with pytest.raises(InvalidSettings, match=r"besides the 4\.0MiB kept there"):
        check_disk(DiskSettings(path=str(slab), capacity=2**60))


def test_path_that_is_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path, why in ((file, ""), (file / "below", f" and cannot become one: {file} is a file")):
        said = f"disk.path: {path} is not a folder{why}; name another path"
        with pytest.raises(InvalidSettings, match=re.escape(said)):
            check_disk(DiskSettings(path=str(path), capacity=1))


def test_path_that_is_not_writable_is_refused() -> None:
    with pytest.raises(InvalidSettings, match=r"disk.path: /proc/kvtier is not writable"):
        check_disk(DiskSettings(path="/proc/kvtier", capacity=1))


def test_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_disk(DiskSettings(path=str(tmp_path), capacity=1))
    assert list(tmp_path.iterdir()) == []


def test_shared_folder_must_be_folder_and_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_shared(SharedSettings(path=str(tmp_path / "kv")))
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSettings, match=r"shared\.path: .* is not a folder"):
        check_shared(SharedSettings(path=str(tmp_path / "file")))
    gate = threading.Event()
    monkeypatch.setattr(machine, "check_folder", lambda *_: gate.wait(30))
    monkeypatch.setattr(machine, "_MOUNT_S", 0.01)
    with pytest.raises(InvalidSettings, match=r"shared\.path: /dead: no answer within"):
        check_shared(SharedSettings(path="/dead"))
    gate.set()
