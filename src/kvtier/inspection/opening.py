"""From what a person names to what can be looked into: one clear error for each mistake."""

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
"""For a call on a bucket. A person who waits has more patience than an engine."""


def is_url(place: str) -> bool:
    """Whether a bucket is meant."""
    return "://" in place


def open_view(place: str, argument: str = "PATH") -> View:
    """Of a folder, or of a bucket: s3://bucket/prefix, gs://… or az://….

    Raises InvalidSettings with the fix; `argument` is what names the place. One request, and
    nothing is written.
    """
    with _named(argument):
        if not place:
            raise InvalidSettings("shared.path: it is empty; name a folder or a bucket")
        if not is_url(place):
            return FolderView(Path(place))
        store = BucketStore(place, deadline_s=_DEADLINE_S)
        with _closed_on_error(store):
            store.check_readable()
        return StoreView(store, parse_url(place).url)


def open_store(place: str, argument: str = "PATH") -> Store:
    """The same to write to; a folder is made. As `open_view`, but it writes, to try it out."""
    with _named(argument):
        if not is_url(place):
            return PosixStore(Path(place))
        store = BucketStore(place, deadline_s=_DEADLINE_S)
        with _closed_on_error(store):
            store.check()
        return store


@contextmanager
def _named(argument: str) -> Iterator[None]:
    """Errors name what a person typed, and not a setting of engines."""
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
