"""What an object's metadata say in the words of a store.

Why it exists: HEAD, GET, PUT and a listing describe one object each in its own way; readers
compare what they got from one with what they got from another. Invariant: while an object stays,
every answer gives the same Stat.
"""

from datetime import datetime
from typing import TYPE_CHECKING

from kvtier.tiers.shared.store import Stat

if TYPE_CHECKING:
    from obstore import ObjectMeta


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
