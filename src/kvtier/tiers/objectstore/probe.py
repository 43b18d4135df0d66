"""What a server does that the protocol leaves open, found out by asking it.

Why it exists: servers that speak S3 differ in two things on which the contract of a store
rests, and none of them says so: whether a PUT with `If-None-Match: *` fails where the object
exists, and in which order objects are listed. Invariant: a probe leaves nothing behind where it
may remove what it made, and its names are none that a listing shows.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from kvtier.clock import unique_id
from kvtier.tiers.objectstore.faults import translated

if TYPE_CHECKING:
    from kvtier.tiers.objectstore.client import Client


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
