"""Opening the store that an evictor works on, and checking it before anything is deleted.

A wrong PATH, or a quota for a folder that does not exist, is an error at the start. Key spaces
of another format are refused, because their names may mean something else.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kvtier.errors import InvalidSettings
from kvtier.evictor import filesystem
from kvtier.evictor.events import Owner
from kvtier.evictor.filesystem import FileSystemUsage
from kvtier.evictor.layouts import StoreTree, is_inside_a_tree
from kvtier.evictor.listing import read_small
from kvtier.evictor.options import EvictorOptions
from kvtier.evictor.segments import MANIFEST_BYTES_MAX
from kvtier.tiers.files import MANIFEST_NAME, manifest_format
from kvtier.tiers.objectstore.store import BucketStore
from kvtier.tiers.shared.manifest import FORMAT
from kvtier.tiers.shared.posix import PosixStore
from kvtier.tiers.shared.store import Store

_log = logging.getLogger(__name__)


class OpenedStore(NamedTuple):
    """An open store, with its file system; a bucket has none."""

    store: Store
    filesystem: Callable[[], FileSystemUsage] | None
    """Measures the file system."""
    mounts: Callable[[], Sequence[str]] = tuple
    """Lists the names in the store at which another file system is mounted."""
    owner: Owner = "shared"
    """The tier that the store belongs to, for events."""

    def measure(self) -> FileSystemUsage | None:
        """Return the current use of the file system; None for a bucket."""
        return None if self.filesystem is None else self.filesystem()


def open_store(path: str) -> OpenedStore:
    """Open the store in an existing folder, or in a bucket: `s3://bucket/prefix`.

    Raises InvalidSettings naming `PATH`.
    """
    try:
        return _open_bucket(path) if "://" in path else _open_folder(Path(path))
    except InvalidSettings as error:
        text = str(error)
        for setting in ("shared.path", "objectstore.url"):
            text = text.replace(setting, "PATH")
        raise InvalidSettings(text) from error


def _open_folder(path: Path) -> OpenedStore:
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise InvalidSettings(f"PATH: {path} {what}; name the folder that engines share")
    store = PosixStore(path, direct="never")
    return OpenedStore(
        store, lambda: filesystem.measure(path), lambda: filesystem.mounts_below(path), "shared"
    )


def _open_bucket(url: str) -> OpenedStore:
    store = BucketStore(url)
    try:
        store.check()
    except InvalidSettings:
        store.close()
        raise
    return OpenedStore(store, None, owner="objectstore")


def check_store(
    found: Sequence[str],
    trees: Sequence[StoreTree],
    refused: Mapping[str, str],
    mounts: Sequence[str],
    options: EvictorOptions,
) -> None:
    """Check that a store can be the one that the user meant.

    `found` are the names at the top of the store, without the evictors' own folder. `trees` are
    the trees to evict from; `refused` are those that must not be touched, with the reason.
    Raises InvalidSettings naming the flag and how to correct it.
    """
    for reason in refused.values():
        raise InvalidSettings(f"PATH: {reason}, or move the folder away")
    if not trees and not mounts:
        _check_unknown(found, options)
    names = {tree.name for tree in trees}
    for mount in mounts:
        _log.warning("ignored, because another file system is mounted there: %s", mount)
        names.add(mount.partition("/")[0])
    for folder in sorted(set(options.quotas) - names):
        there = ", ".join(sorted(names)) or "none, because no engine has written yet"
        raise InvalidSettings(
            f"--quota: there is no folder {folder} in the store; name one of the folders at its "
            f"top: {there}"
        )


def _check_unknown(found: Sequence[str], options: EvictorOptions) -> None:
    """Check a store that contains no tree of a known layout."""
    if inside := next((top for top in found if is_inside_a_tree(top)), None):
        raise InvalidSettings(
            f"PATH: {inside} at its top belongs to one key space; name the folder above it"
        )
    if options.delete_unknown and found:
        raise InvalidSettings(
            "--delete-unknown: nothing here has a known layout, so all of it would be deleted; "
            "name the folder that engines share"
        )


def refusal(store: Store, tree: StoreTree) -> str | None:
    """Return why a tree must not be touched, or None.

    The reason is a manifest of another format, or one that cannot be read. A manifest that is
    missing or damaged is no reason, since files are recognized by their names. Never raises, so
    that one tree does not stop eviction from the others.
    """
    if tree.is_foreign:
        return None
    name = f"{tree.name}/{MANIFEST_NAME}"
    try:
        read = read_small(store, name, MANIFEST_BYTES_MAX)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error}); let this user read it"
    if read is None:
        return None
    try:
        found = manifest_format(read[0])
    except InvalidSettings:
        return None
    if found == FORMAT:
        return None
    return (
        f"{name} is of format {found}, this kvtier knows {FORMAT}; run the evictor of that version"
    )
