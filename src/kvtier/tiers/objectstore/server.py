"""The differences between servers: object metadata, the order of listings, conditional writes.

HEAD, GET, PUT and a listing each describe an object in another way, and readers compare one with
the other; `stat_of` gives the same Stat for all of them while the object stays the same.

The clouds and most servers list by whole names, where `a-b` comes before `a/b`. SeaweedFS lists by
folders, where it comes after, and omits the contents of a folder when it is told to start after the
name of that folder. There the folders are walked one by one, as on a disk, at the cost of one more
request per folder. Either way names ascend, and an object that stays is listed exactly once. Both
listings yield None after each answer of the server, so that the caller can check the time. Names
that no store makes (another program's, a probe's) are left out.

Servers do not say in which order they list, nor whether a PUT with `If-None-Match: *` fails if the
object exists; the probes find out. They leave nothing behind where they may delete, and no listing
shows the names they use.
"""

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
    """Return the `Stat` of an object; its version is the entity tag, else length and time."""
    modified_s = seconds(meta["last_modified"])
    version = version_of(meta["e_tag"]) or f"{meta['size']:x}-{int(modified_s):x}"
    return Stat(meta["size"], version, modified_s)


def version_of(e_tag: str | None) -> str:
    """Return an entity tag without the quotes, which some answers omit; empty for None."""
    return (e_tag or "").removeprefix("W/").strip('"')


def seconds(modified: datetime) -> float:
    """Return whole Unix seconds: a listing may have fractions, headers have none."""
    return float(int(modified.timestamp()))


Listing: TypeAlias = Iterator[ListEntry | None]

PAGE: Final = 1000
"""The most objects that a server lists in one answer."""


def list_sorted(client: "Client", folder: str, after: str, limit: int) -> Listing:
    """List with a server that lists by whole names: one request per thousand objects."""
    start = f"{folder}/" if folder else ""
    pages = client.list(folder or None, offset=after or None, chunk_size=min(limit, PAGE))
    for page in pages:
        for meta in page:
            name = meta["path"]
            if name > after and name.startswith(start) and _is_legal(name):
                yield ListEntry(name, stat_of(meta))
        yield None


def list_folders(client: "Client", folder: str, after: str) -> Listing:
    """List with a server that lists by folders: one request per folder and thousand objects.

    A page starts at `folder` again, so the folders on the way to `after` are requested once more.
    One folder at a time is in memory.
    """
    answer = client.list_with_delimiter(folder or None)
    yield None
    start = f"{folder}/" if folder else ""
    found = {meta["path"]: meta for meta in answer["objects"] if meta["path"].startswith(start)}
    below = {f"{name}/" for name in answer["common_prefixes"]}
    # With a trailing `/`, a folder sorts to where the names in it belong.
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


def check_conditional_writes(client: "Client") -> None:
    """Check that the second of two conditional PUTs of one name fails. Three requests.

    Raises OSError: EOPNOTSUPP where the server ignores the condition or does not support it, so
    that two writers of one name cannot be kept apart; other errnos as for any request.
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
    """Return whether listings are in the order of whole names. Five requests.

    False: the server lists by folders. Raises OSError as any request does.
    """
    unique = unique_id()
    inside, beside = f".probe-{unique}/a", f".probe-{unique}-b"
    with _removed(client, inside, beside), translated("probe"):
        for name in (inside, beside):
            client.put(name, b"probe", mode="overwrite", use_multipart=False)
        # The offset must not be the folder's own name; see the module's docstring.
        pages = client.list(offset=f".probe-{unique[:-1]}", chunk_size=2)
        first = next((meta["path"] for page in pages for meta in page), beside)
    return first != inside


@contextmanager
def _removed(client: "Client", *names: str) -> Iterator[None]:
    """Delete `names` on exit, as far as the server allows it."""
    try:
        yield
    finally:
        for name in names:
            with suppress(OSError), translated("probe"):
                client.delete(name)
