"""Why a bucket cannot be used at start, in one line with the fix.

Why it exists: a wrong bucket, refused credentials and an unreachable endpoint look alike to
whoever reads "I/O error"; each has its own remedy, and the remedy differs by cloud.
"""

import errno
from typing import Final

from kvtier.tiers.objectstore.client import endpoint, proxy
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
        return _unreachable(scheme)
    if number == errno.EOPNOTSUPP:
        return (
            "the server knows no conditional writes (If-None-Match), so that two writers of one "
            "file cannot be kept apart: use a newer server, or another one"
        )
    if number in _REGION and scheme == "s3":
        return "the server refuses the request: set AWS_REGION to the bucket's region"
    return "the bucket cannot be used: see what its server logged"


def _unreachable(scheme: str) -> str:
    named = endpoint(scheme)
    if named is None:
        where, fix = "the cloud's own endpoint", f"set {_ENDPOINT[scheme]} if you mean another"
    else:
        where, fix = f"{named[0]}={named[1]}", "correct it"
    through = proxy(scheme)
    if through is not None:
        where = f"{where} through {through[0]}={through[1]}"
    return f"{where} cannot be reached: {fix}, or correct the network's rules"
