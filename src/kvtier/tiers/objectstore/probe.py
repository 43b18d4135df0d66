"""What a server does that the protocol leaves open, found out by asking it.

Why it exists: servers that speak S3 differ in two things on which the contract of a store
rests, and none of them says so: whether a PUT with `If-None-Match: *` fails where the object
exists, and in which order objects are listed. Invariant: a probe leaves nothing behind where it
may remove what it made, and its names are none that a listing shows.
"""

import contextlib
import errno
from typing import TYPE_CHECKING, NamedTuple

from kvtier.clock import unique_id
from kvtier.tiers.objectstore.faults import translated

if TYPE_CHECKING:
    from kvtier.tiers.objectstore.client import Client


class Manners(NamedTuple):
    """A server's ways. The defaults are those of the clouds."""

    conditional: bool = True
    """A PUT that must make an object fails where there is one."""
    sorted_names: bool = True
    """A listing is in the order of whole names."""


def probe(client: "Client") -> Manners:
    """Write two objects of a few bytes, list them, remove them: six requests.

    Raises OSError, as for a request of a store, where the server refuses one.
    """
    unique = unique_id()
    inside, beside = f".probe-{unique}/a", f".probe-{unique}-b"
    try:
        conditional = _is_conditional(client, inside)
        with translated("probe"):
            client.put(beside, b"probe", mode="overwrite", use_multipart=False)
            # Not after the folder's own name: see `listing`.
            pages = client.list(offset=f".probe-{unique[:-1]}", chunk_size=2)
            first = next((meta["path"] for page in pages for meta in page), beside)
        return Manners(conditional, first != inside)
    finally:
        for name in (inside, beside):
            with contextlib.suppress(OSError), translated("probe"):
                client.delete(name)


def _is_conditional(client: "Client", name: str) -> bool:
    """Of two conditional PUTs under one new name the second must fail."""
    try:
        for _ in range(2):
            with translated("probe"):
                client.put(name, b"probe", mode="create")
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        # Refused outright: the listing still needs the object.
        with translated("probe"):
            client.put(name, b"probe", mode="overwrite", use_multipart=False)
    return False
