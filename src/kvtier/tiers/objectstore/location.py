"""Where a store's objects are: the URL of a bucket and a prefix in it.

Why it exists: the one place that decides which URLs are legal. Owns one invariant: a URL never
carries a credential, and the error about one that does is not the place where it leaks.
"""

import re
from typing import Final, NamedTuple

from kvtier.errors import InvalidSettings
from kvtier.tiers.shared.names import check_folder

SETTING: Final = "objectstore.url"
EXAMPLES: Final = "s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"

_URL: Final = re.compile(
    r"(?P<scheme>[a-z0-9]+)://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]+)(?:/(?P<prefix>.+?)?)?/?"
)
_SCHEMES: Final = frozenset({"s3", "gs", "az"})


class Location(NamedTuple):
    """A bucket (a container on Azure) and the prefix of all names in it, perhaps empty."""

    scheme: str
    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        """For messages; there is no credential in it."""
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")


def parse_url(url: str) -> Location:
    """The place that `url` names. Raises InvalidSettings, without secrets, with the fix."""
    place = url.partition("://")[2] or url
    if any(mark in place for mark in "@:?#"):  # a secret may stand there: it is not repeated
        raise InvalidSettings(
            f"{SETTING}: a bucket's URL holds no credentials, no port and no query; write "
            f"{EXAMPLES}, name another endpoint by AWS_ENDPOINT_URL, and give credentials by the "
            "environment or a file (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY)"
        )
    matched = _URL.fullmatch(url)
    if matched is None or matched["scheme"] not in _SCHEMES:
        raise InvalidSettings(f"{SETTING}: {url!r} is not a bucket's URL; write {EXAMPLES}")
    try:
        prefix = check_folder(matched["prefix"] or "")
    except ValueError as error:
        raise InvalidSettings(f"{SETTING}: {url!r}: {error}") from None
    return Location(matched["scheme"], matched["bucket"], prefix)
