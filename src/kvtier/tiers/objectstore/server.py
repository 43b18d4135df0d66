"""What differs from server to server."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypeAlias

from kvtier.clock import unique_id
from kvtier.tiers.objectstore.faults import translated
from kvtier.tiers.shared.store import ListEntry, Stat, is_legal_part

if TYPE_CHECKING:
    from obstore import ObjectMeta

    from kvtier.tiers.objectstore.client import Client


def stat_of(meta: "ObjectMeta") -> Stat:
    """The version is the entity tag; where a server has none, length and time."""
    modified_s = seconds(meta["last_modified"])
    version = version_of(meta["e_tag"]) or f"{meta['size']:x}-{int(modified_s):x}"
    return Stat(meta["size"], version, modified_s)


def version_of(e_tag: str | None) -> str:
    """The entity tag without its quotes, which some answers leave out; empty where it is None."""
    return (e_tag or "").removeprefix("W/").strip('"')


def seconds(modified: datetime) -> float:
    """Whole Unix seconds: headers have no more, while a listing of the same object may have."""
    return float(int(modified.timestamp()))


Listing: TypeAlias = Iterator[ListEntry | None]

PAGE: Final = 1000
"""Servers list no more objects in one answer."""


def list_sorted(client: "Client", folder: str, after: str, limit: int) -> Listing:
    """For a server that lists by whole names: one request per thousand objects."""
    start = f"{folder}/" if folder else ""
    pages = client.list(folder or None, offset=after or None, chunk_size=min(limit, PAGE))
    for page in pages:
        for meta in page:
            name = meta["path"]
            if name > after and name.startswith(start) and _is_legal(name):
                yield ListEntry(name, stat_of(meta))
        yield None


def list_folders(client: "Client", folder: str, after: str) -> Listing:
    """For a server that lists by folders: one request per folder and thousand objects in it.

    A page begins at the folder above, so its folders on the way to `after` are asked for again.
    One folder at a time is in memory.
    """
    answer = client.list_with_delimiter(folder or None)
    yield None
    start = f"{folder}/" if folder else ""
    found = {meta["path"]: meta for meta in answer["objects"] if meta["path"].startswith(start)}
    below = {f"{name}/" for name in answer["common_prefixes"]}
    # With its `/` a folder stands where the names in it belong.
    for name in sorted({*found, *below}):
        if not _is_legal(name.rstrip("/")):
            continue
        if name in found:
            if name > after:
                yield ListEntry(name, stat_of(found[name]))
        elif name > after or after.startswith(name):
            yield from list_folders(client, name.rstrip("/"), after)


def _is_legal(name: str) -> bool:
    return all(map(is_legal_part, name.split("/")))


def demand_conditions(client: "Client") -> None:
    """Of two conditional PUTs under one new name the second must fail. Three requests.

    Raises OSError: EOPNOTSUPP where the server ignores the condition or does not know it, so
    that two writers of one name cannot be kept apart; others as for any request.
    """
    name = f".probe-{unique_id()}"
    with _removed(client, name):
        try:
            for _ in range(2):
                with translated("probe"):
                    client.put(name, b"probe", mode="create", use_multipart=False)
        except FileExistsError:
            return
        raise OSError(errno.EOPNOTSUPP, "probe: the server ignored If-None-Match")


def lists_whole_names(client: "Client") -> bool:
    """Whether a listing is in the order of whole names, and not of folders. Five requests.

    Raises OSError, as for any request.
    """
    unique = unique_id()
    inside, beside = f".probe-{unique}/a", f".probe-{unique}-b"
    with _removed(client, inside, beside), translated("probe"):
        for name in (inside, beside):
            client.put(name, b"probe", mode="overwrite", use_multipart=False)
        # Not after the folder's own name: see `listing`.
        pages = client.list(offset=f".probe-{unique[:-1]}", chunk_size=2)
        first = next((meta["path"] for page in pages for meta in page), beside)
    return first != inside


@contextmanager
def _removed(client: "Client", *names: str) -> Iterator[None]:
    """Afterwards `names` are gone, as far as the server lets us."""
    try:
        yield
    finally:
        for name in names:
            with suppress(OSError), translated("probe"):
                client.delete(name)
