import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from obstore.store import S3Store

from kvtier.clock import wall_s
from kvtier.diagnosis import storage
from kvtier.diagnosis.report import Check, Status
from kvtier.diagnosis.storage import (
    bucket_checks,
    disk_checks,
    key_file_check,
    shared_checks,
    skew_check,
)
from kvtier.errors import InvalidSettings
from kvtier.settings import DiskSettings, ObjectStoreSettings, SharedSettings
from kvtier.tiers.disk.folder import lock_folder
from kvtier.tiers.files import SystemCalls
from tests.inspection.stores import NAME, StoreFolder, key_file, keys
from tests.s3 import FaultyServer

HOUR_S = 3600


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


def wrong(checks: Iterator[Check]) -> list[tuple[str, Status, str]]:
    """Return the checks that are not OK, except those about the file system that tests run on."""
    return [
        (check.topic, check.status, check.told)
        for check in checks
        if check.status is not Status.OK and not check.told.startswith("on ")
    ]


def test_disk_checks_pass_and_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    checks = list(disk_checks(DiskSettings(path=str(tmp_path / "disk"), capacity=1 << 20)))
    assert wrong(iter(checks)) == []
    assert {"disk.path", "disk.capacity", "disk.direct_io"} == {each.topic for each in checks}
    assert everything(tmp_path) == [tmp_path / "disk"]


def test_disk_checks_accept_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    checks = list(disk_checks(DiskSettings(path=str(tmp_path / "disk"), capacity=1 << 20)))
    assert "the first engine creates it" in checks[0].told
    assert everything(tmp_path) == []


def test_disk_in_use_is_a_warning(tmp_path: Path) -> None:
    folder = lock_folder(tmp_path, SystemCalls())
    try:
        before = everything(tmp_path)
        ((topic, status, text),) = wrong(
            disk_checks(DiskSettings(path=str(tmp_path), capacity=1 << 20))
        )
        assert everything(tmp_path) == before
    finally:
        folder.close()
    assert (topic, status) == ("disk.path", Status.WARN)
    assert f"is in use by process {os.getpid()}" in text


@pytest.mark.parametrize(
    ("name", "capacity", "expected"),
    [
        ("none/disk", 1 << 20, r"disk.path: the parent folder of .*none/disk does not exist"),
        ("file", 1 << 20, r"disk.path: .*file is not a folder"),
        ("disk", 1 << 60, r"disk.capacity: .* does not fit"),
    ],
)
def test_disk_that_cannot_be_used_raises(
    tmp_path: Path, name: str, capacity: int, expected: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSettings, match=expected):
        list(disk_checks(DiskSettings(path=str(tmp_path / name), capacity=capacity)))


def test_shared_checks_pass_and_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "kv").mkdir()
    store = StoreFolder(tmp_path / "kv")
    store.fill(keys(4))
    before = everything(tmp_path)
    secret = key_file(tmp_path)
    checks = list(shared_checks(SharedSettings(path=str(store.path), key_file=str(secret))))
    assert wrong(iter(checks)) == []
    text = "\n".join(check.told for check in checks)
    for part in (
        "holds a secret",
        "of two writers",
        "O_DIRECT",
        "clock",
        "inodes",
        "crashed writers",
    ):
        assert part in text
    secret.unlink()
    assert everything(tmp_path) == before


def test_shared_folder_that_does_not_exist_is_a_warning(tmp_path: Path) -> None:
    ((topic, status, text),) = wrong(shared_checks(SharedSettings(path=str(tmp_path / "kv"))))
    assert (topic, status) == ("shared.path", Status.WARN)
    assert "does not exist; the first engine creates it" in text
    assert everything(tmp_path) == []
    with pytest.raises(InvalidSettings, match=r"shared.path: the parent folder"):
        list(shared_checks(SharedSettings(path=str(tmp_path / "none" / "kv"))))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_shared_folder_that_is_read_only_raises(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidSettings, match=r"shared.path: .* is not writable"):
        list(shared_checks(SharedSettings(path=str(tmp_path))))


def test_temporary_files_of_crashed_writers_are_a_warning(tmp_path: Path) -> None:
    store = StoreFolder(tmp_path)
    store.fill(keys(4))
    for name, age_s in ((".tmp-a-1", 2 * HOUR_S), (".tmp-b-1", 2 * HOUR_S), (".tmp-c-1", 60)):
        file = store.plant(f"{NAME}/blocks/000/{name}")
        os.utime(file, (file.stat().st_mtime - age_s,) * 2)
    old = store.plant("stranger")
    os.utime(old, (1, 1))
    ((_, status, text),) = wrong(shared_checks(SharedSettings(path=str(tmp_path))))
    assert (status, text) == (Status.WARN, "2 temporary files of crashed writers")


def test_search_for_temporary_files_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        (tmp_path / f"file-{number}").touch()
    monkeypatch.setattr(storage, "LOOK_FILES", 3)
    text = [check.told for check in shared_checks(SharedSettings(path=str(tmp_path)))]
    assert text[-1] == "no files of crashed writers among the first 3"


def test_missing_direct_io_fails_only_if_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., int] = os.open

    def refusing(path: str, flags: int, *arguments: int, **options: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", refusing)
    fails = wrong(shared_checks(SharedSettings(path=str(tmp_path), direct_io="always")))
    assert [(topic, status) for topic, status, _ in fails] == [("shared.direct_io", Status.FAIL)]
    assert wrong(shared_checks(SharedSettings(path=str(tmp_path)))) == []
    fails = wrong(disk_checks(DiskSettings(path=str(tmp_path), capacity=4096, direct_io="always")))
    assert [(topic, status) for topic, status, _ in fails] == [("disk.direct_io", Status.FAIL)]


@pytest.mark.parametrize(
    ("skew_s", "status", "expected"),
    [
        (4.9, Status.OK, "4.9 s ahead of"),
        (5.1, Status.WARN, "5.1 s ahead of"),
        (-3600, Status.WARN, "3600.0 s behind"),
    ],
)
def test_skew_check_warns_beyond_the_limit(skew_s: float, status: Status, expected: str) -> None:
    check = skew_check("shared.path", skew_s)
    assert (check.status, expected in check.told) == (status, True)


@pytest.mark.parametrize("ahead_s", [-60, 60])
def test_folder_clock_is_that_of_the_file_system(
    tmp_path: Path, ahead_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "wall_s", lambda: wall_s() - ahead_s)
    ((_, _, text),) = wrong(shared_checks(SharedSettings(path=str(tmp_path))))
    assert text.startswith(f"the store's clock is {abs(ahead_s)}.0 s")
    assert ("ahead" in text) == (ahead_s > 0)


def test_key_file_readable_by_others_fails(tmp_path: Path) -> None:
    file = key_file(tmp_path)
    assert key_file_check("shared.key_file", file).status is Status.OK
    file.chmod(0o644)
    check = key_file_check("shared.key_file", file)
    assert (check.status, check.told[: len(str(file))]) == (Status.FAIL, str(file))


@pytest.mark.usefixtures("s3_owner")
def test_bucket_without_a_server_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(InvalidSettings, match="cannot be reached"):
        list(bucket_checks(ObjectStoreSettings(url="s3://bucket")))


@pytest.mark.usefixtures("s3_owner")
def test_server_without_conditional_writes_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultyServer("ignored").running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        with pytest.raises(InvalidSettings, match="conditional"):
            list(bucket_checks(ObjectStoreSettings(url="s3://bucket")))
        assert server.objects == {}


def test_bucket_checks_pass_and_leave_nothing_behind(
    bucket_url: str, bucket_client: S3Store, tmp_path: Path
) -> None:
    bucket_client.put("space-0123456789abcdef/blocks/000/x", b"x")
    secret = key_file(tmp_path)
    checks = list(bucket_checks(ObjectStoreSettings(url=bucket_url, key_file=str(secret))))
    assert wrong(iter(checks)) == []
    text = "\n".join(check.told for check in checks)
    for part in ("holds a secret", "can be listed, read and written", "conditional", "clock"):
        assert part in text
    left = [meta["path"] for page in bucket_client.list() for meta in page]
    assert left == ["space-0123456789abcdef/blocks/000/x"]
