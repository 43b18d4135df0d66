"""The client library's exceptions as OSErrors, and as explanations of why a bucket cannot be used.

The layers above act on an errno (full, refused, timed out, not there), while the library raises its
own classes, whose text is a page long and contains the whole request. At start, a wrong bucket,
refused credentials and an unreachable endpoint each need another remedy, which also differs by
cloud; `explain` puts it into one line.

Invariant: only the status, the server's error code and our own words appear in an error, so that a
signed URL, the name of a key or a header never reaches a log.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kvtier.tiers.objectstore.client import SETTING, Location, endpoint, proxy

_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>(\w{1,64})</Code>")
_SYSTEM: Final = re.compile(r"\bOs \{\s*code: (\d{1,4})")

# Error codes that are more specific than the status they come with.
_BY_CODE: Final = {
    "NoSuchBucket": errno.ENODEV,
    "ContainerNotFound": errno.ENODEV,
    "ConditionalRequestConflict": errno.EAGAIN,
    "QuotaExceeded": errno.ENOSPC,
    "XMinioStorageFull": errno.ENOSPC,
    "SlowDown": errno.EBUSY,
    "InvalidRange": errno.ERANGE,
}
_BY_STATUS: Final = {
    301: errno.EREMCHG,
    307: errno.EREMCHG,
    400: errno.EINVAL,
    401: errno.EACCES,
    403: errno.EACCES,
    404: errno.ENOENT,
    408: errno.ETIMEDOUT,
    409: errno.EEXIST,
    412: errno.EEXIST,
    413: errno.EFBIG,
    416: errno.ERANGE,
    429: errno.EBUSY,
    501: errno.EOPNOTSUPP,
    503: errno.EBUSY,
    504: errno.ETIMEDOUT,
    507: errno.ENOSPC,
}
# Phrases in the library's text, in the order of the search.
_BY_PHRASE: Final = (
    ("169.254.169.254", errno.EACCES, "no credentials found"),
    ("metadata.google.internal", errno.EACCES, "no credentials found"),
    ("External AWS credential provider", errno.EACCES, "the credentials file cannot be read"),
    ("TimedOut", errno.ETIMEDOUT, ""),
    ("kind: Timeout", errno.ETIMEDOUT, ""),
    ("without LOCATION", errno.EREMCHG, "the bucket is in another region"),
    ("dns error", errno.EHOSTUNREACH, "the endpoint's name has no address"),
    ("BadScheme", errno.EPROTONOSUPPORT, "plain HTTP is not allowed"),
    ("certificate", errno.EPROTO, "the endpoint's certificate is not trusted"),
    ("Wanted range starting", errno.ERANGE, ""),
    ("non-partial response", errno.ERANGE, ""),
)
_BY_CLASS: Final = {
    "AlreadyExistsError": errno.EEXIST,
    "PreconditionError": errno.EEXIST,
    "PermissionDeniedError": errno.EACCES,
    "UnauthenticatedError": errno.EACCES,
    "NotSupportedError": errno.EOPNOTSUPP,
    "NotImplementedError": errno.EOPNOTSUPP,
    "InvalidPathError": errno.EILSEQ,
    "FileNotFoundError": errno.ENOENT,
}

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


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn what the library raises in the body into an OSError with the text "`doing`: reason".

    An OSError that has an errno passes unchanged.
    """
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise to_os_error(error, doing) from None
    except BaseException as error:
        # A panic of the library (for example on a line break in a secret) is not an Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise OSError(errno.EIO, f"{doing}: the client library failed") from None


def to_os_error(error: BaseException, doing: str) -> OSError:
    """Return the OSError, of the subclass that its errno selects, for an error of the library."""
    text = str(error)
    status, code = _STATUS.search(text), _CODE.search(text)
    if status or code:
        number = _BY_CODE.get(code[1] if code else "") or _BY_STATUS.get(
            int(status[1]) if status else 0, errno.EIO
        )
        said = " ".join(found[1] for found in (status, code) if found)
        return OSError(number, f"{doing}: the server said {said}")
    for phrase, number, words in _BY_PHRASE:
        if phrase in text:
            return OSError(number, f"{doing}: {words or os.strerror(number)}")
    system = _SYSTEM.search(text)
    number = int(system[1]) if system else _BY_CLASS.get(type(error).__name__, errno.EIO)
    return OSError(number, f"{doing}: {os.strerror(number)}")


def explain(error: OSError, location: Location) -> str:
    """Return one line with the setting, the bucket, the reason and the remedy."""
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
            "the server does not support conditional writes (If-None-Match), so two writers of one "
            "file cannot be kept apart: use a newer server, or another one"
        )
    if number in _REGION and scheme == "s3":
        return "the server refuses the request: set AWS_REGION to the bucket's region"
    return "the bucket cannot be used: see the log of its server"


def _unreachable(scheme: str) -> str:
    named = endpoint(scheme)
    if named is None:
        where, fix = "the cloud's own endpoint", f"set {_ENDPOINT[scheme]} to use another"
    else:
        where, fix = f"{named[0]}={named[1]}", "correct it"
    through = proxy(scheme)
    if through is not None:
        where = f"{where} through {through[0]}={through[1]}"
    return f"{where} cannot be reached: {fix}, or correct the network's rules"
