"""Why a bucket cannot be used at start, in one line with the fix.

Why it exists: a wrong bucket, refused credentials and an unreachable endpoint look alike to
whoever reads "I/O error"; each has its own remedy, and the remedy differs by cloud.
"""

import errno
from typing import Final

from kvtier.tiers.objectstore.client import endpoint
from kvtier.tiers.objectstore.location import SETTING, Location

_CREDENTIALS: Final = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or AWS_ROLE_ARN",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_CLIENT_ID",
}
_ENDPOINT: Final = {"s3": "AWS_ENDPOINT_URL", "gs": "GOOGLE_BASE_URL", "az": "AZURE_ENDPOINT"}
_ABSENT: Final = frozenset({errno.ENODEV, errno.ENOENT})
_REGION: Final = frozenset({errno.EREMCHG, errno.EINVAL})
_UNREACHABLE: Final = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EPROTO,
        errno.ETIMEDOUT,
    }
)


def explain(error: OSError, location: Location) -> str:
    """One line: setting, bucket, what happened, what to do."""
    said = error.strerror or str(error)
    return f"{SETTING}: {location.url}: {_reason(error, location)} ({said})"


def _reason(error: OSError, location: Location) -> str:
    scheme, number = location.scheme, error.errno
    if number in _ABSENT:
        return f"there is no bucket {location.bucket!r}: create it, or correct its name"
    if number == errno.EACCES:
        return (
            "access is refused: give credentials that may list, read, write and delete here, "
            f"with {_CREDENTIALS[scheme]}"
        )
    if number in _UNREACHABLE:
        named = endpoint(scheme)
        where = f"{named[0]}={named[1]}" if named else "the cloud's own endpoint"
        return f"{where} cannot be reached: correct {_ENDPOINT[scheme]}, or the network's rules"
    if number in _REGION and scheme == "s3":
        return "the server refuses the request: set AWS_REGION to the bucket's region"
    return "the bucket cannot be used: see what its server logged"
