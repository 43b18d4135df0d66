"""Opens the folder or bucket that a command names, with errors that name the argument."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kvtier.errors import InvalidSettings
from kvtier.inspection.folder_view import FolderView
from kvtier.inspection.store_view import StoreView
from kvtier.inspection.view import View
from kvtier.tiers.objectstore.client import parse_url
from kvtier.tiers.objectstore.store import BucketStore
from kvtier.tiers.shared.posix import PosixStore
from kvtier.tiers.shared.store import Store

_DEADLINE_S: Final = 30.0
"""Time limit of a call on a bucket. It is longer than an engine's, because a user waits."""


def is_url(place: str) -> bool:
    """Return True if `place` names a bucket instead of a folder."""
    return "://" in place


def open_view(place: str, argument: str = "PATH") -> View:
    """Open a view of a folder, or of a bucket: s3://bucket/prefix, gs://… or az://….

    Costs one request and writes nothing. Raises InvalidSettings if the place cannot be read;
    `argument` is the command's name for the place, used in the message.
    """
    with _named(argument):
        if not place:
            raise InvalidSettings("shared.path: empty; name a folder or a bucket")
        if not is_url(place):
            return FolderView(Path(place))
        store = BucketStore(place, deadline_s=_DEADLINE_S)
        with _closed_on_error(store):
            store.check_readable()
        return StoreView(store, parse_url(place).url)


def open_store(place: str, argument: str = "PATH") -> Store:
    """Open a folder, which is created if necessary, or a bucket for writing.

    Writes and removes probe files. Raises InvalidSettings as `open_view` does.
    """
    with _named(argument):
        if not is_url(place):
            return PosixStore(Path(place))
        store = BucketStore(place, deadline_s=_DEADLINE_S)
        with _closed_on_error(store):
            store.check()
        return store


@contextmanager
def _named(argument: str) -> Iterator[None]:
    """Make errors name the command's argument instead of an engine's setting."""
    try:
        yield
    except InvalidSettings as error:
        text = str(error)
        for setting in ("shared.path", "objectstore.url"):
            text = text.replace(setting, argument)
        raise InvalidSettings(text) from error


@contextmanager
def _closed_on_error(store: BucketStore) -> Iterator[None]:
    try:
        yield
    except BaseException:
        store.close()
        raise
