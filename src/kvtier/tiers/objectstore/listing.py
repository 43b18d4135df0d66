"""Listing a bucket in the order of whole names, whatever order its server lists in.

Why it exists: the clouds and most servers list by whole names, where `a-b` comes before `a/b`;
SeaweedFS lists by folders, where it comes after, and leaves out what is in a folder when told to
start after that folder's name. There the folders are walked one by one, as on a disk: one
request more per folder. Invariant: names ascend, and what stays in the bucket is listed once.

Both ways yield None after each answer of the server, so that the caller may look at the clock.
Names that no store makes (another program's, a probe's) are left out.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, TypeAlias

from kvtier.tiers.objectstore.metadata import stat_of
from kvtier.tiers.shared.names import is_legal_part
from kvtier.tiers.shared.store import Listed

if TYPE_CHECKING:
    from kvtier.tiers.objectstore.client import Client

Listing: TypeAlias = Iterator[Listed | None]

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
                yield Listed(name, stat_of(meta))
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
                yield Listed(name, stat_of(found[name]))
        elif name > after or after.startswith(name):
            yield from list_folders(client, name.rstrip("/"), after)


def _is_legal(name: str) -> bool:
    return all(map(is_legal_part, name.split("/")))
