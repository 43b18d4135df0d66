"""From what people write to an evictor that is ready: one clear error for each mistake.

Why: what a person gave on the command line, what the variables of llm-d's evictor say, and what
the machine has, meet here. Invariant: what leaves here can be started; nothing was deleted yet.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from kvtier import plugins
from kvtier.blocks.checksum import load_key
from kvtier.errors import InvalidSettings
from kvtier.evictor import filesystem
from kvtier.evictor.bounds import byte_mark, inode_mark, quota_marks
from kvtier.evictor.budget import Marks
from kvtier.evictor.events import Owner
from kvtier.evictor.filesystem import FileSystem
from kvtier.evictor.options import Options
from kvtier.settings.sizes import parse_duration
from kvtier.tiers.objectstore.store import BucketStore
from kvtier.tiers.shared.posix import PosixStore
from kvtier.tiers.shared.store import Store


class Wishes(msgspec.Struct, kw_only=True):
    """Texts of flags, as they were written; None where one was not given."""

    path: str
    high: str | None = None
    low: str | None = None
    high_inodes: str | None = None
    low_inodes: str | None = None
    quotas: Sequence[str] = ()
    ttl: str | None = None
    grace: str = "60s"
    orphans: str = "1h"
    lease: str = "60s"
    sweep: str = "1h"
    policy: str = "lru"
    files_per_second: float | None = None
    deletes_per_second: float | None = None
    check_headers: bool = False
    sweep_broken: bool = False
    delete_unknown: bool = False
    sweep_foreign_folders: bool = False
    key_file: Path | None = None
    dry_run: bool = False


def read_options(wishes: Wishes, disk: FileSystem | None) -> Options:
    """Check everything that was written. Raises InvalidSettings naming the flag and the fix."""
    mark, of_filesystem = byte_mark(wishes.high, wishes.low, disk)
    inodes = inode_mark(wishes.high_inodes, wishes.low_inodes, disk)
    quotas = quota_marks(wishes.quotas, disk)
    ttl_s = None if wishes.ttl is None else parse_duration(wishes.ttl, "--ttl")
    if mark.high is None and inodes.high is None and not quotas and ttl_s is None:
        raise InvalidSettings(
            "--high: nothing bounds the store; give --high 500GiB, --high 85%, --high-inodes, "
            "--quota or --ttl"
        )
    grace_s = parse_duration(wishes.grace, "--grace")
    if ttl_s is not None and ttl_s < grace_s:
        raise InvalidSettings(
            f"--ttl: {wishes.ttl} is shorter than --grace {wishes.grace}, which keeps blocks "
            "anyway; make --grace shorter, or --ttl longer"
        )
    lease_s = parse_duration(wishes.lease, "--lease")
    if lease_s < 1:
        raise InvalidSettings(f"--lease: {wishes.lease} is too short to keep up; write 60s")
    for flag, rate in (
        ("--files-per-second", wishes.files_per_second),
        ("--max-delete-per-second", wishes.deletes_per_second),
    ):
        if rate is not None and rate <= 0:
            raise InvalidSettings(f"{flag}: {rate:g} would never end; leave it out for no limit")
    try:
        plugins.load("eviction", wishes.policy)
    except InvalidSettings as error:
        raise InvalidSettings(f"--policy: {error}") from error
    if wishes.key_file is not None:
        load_key(wishes.key_file, "--key-file")
    return Options(
        marks=Marks(mark, inodes),
        of_filesystem=of_filesystem,
        quotas=quotas,
        ttl_s=ttl_s,
        policy=wishes.policy,
        grace_s=grace_s,
        orphan_s=parse_duration(wishes.orphans, "--orphans"),
        sweep_s=parse_duration(wishes.sweep, "--sweep"),
        lease_s=lease_s,
        files_per_second=wishes.files_per_second,
        deletes_per_second=wishes.deletes_per_second,
        check_headers=wishes.check_headers or wishes.sweep_broken,
        sweep_broken=wishes.sweep_broken,
        delete_unknown=wishes.delete_unknown,
        sweep_foreign_folders=wishes.sweep_foreign_folders,
        key_file=wishes.key_file,
        dry_run=wishes.dry_run,
    )


class Place(NamedTuple):
    """A store, and how full its file system is; a bucket has none."""

    store: Store
    filesystem: Callable[[], FileSystem] | None
    mounts: Callable[[], Sequence[str]] = tuple
    """Names below the store at which another file system begins."""
    owner: Owner = "shared"

    def measure(self) -> FileSystem | None:
        """Now."""
        return None if self.filesystem is None else self.filesystem()


def open_place(path: str) -> Place:
    """The store in a folder that exists, or in a bucket: `s3://bucket/prefix`.

    Raises InvalidSettings naming `PATH`.
    """
    try:
        return _open_bucket(path) if "://" in path else _open_folder(Path(path))
    except InvalidSettings as error:
        text = str(error)
        for setting in ("shared.path", "objectstore.url"):
            text = text.replace(setting, "PATH")
        raise InvalidSettings(text) from error


def _open_folder(path: Path) -> Place:
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise InvalidSettings(f"PATH: {path} {what}; name the folder that engines share")
    store = PosixStore(path, direct="never")
    return Place(
        store, lambda: filesystem.measure(path), lambda: filesystem.mounts_below(path), "shared"
    )


def _open_bucket(url: str) -> Place:
    store = BucketStore(url)
    try:
        store.check()
    except InvalidSettings:
        store.close()
        raise
    return Place(store, None, owner="objectstore")
