"""What a client's exceptions mean."""

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

# Codes that say more than the status that they come with.
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
# Phrases in the library's text, in the order in which they are looked for.
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


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Whatever the library raises in the body becomes an OSError: "`doing`: why".

    An OSError that has its errno already passes as it is.
    """
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise to_os_error(error, doing) from None
    except BaseException as error:
        # A panic of the library (say, a line break in a secret) is no Exception in Python.
        if type(error).__name__ != "PanicException":
            raise
        raise OSError(errno.EIO, f"{doing}: the client library failed") from None


def to_os_error(error: BaseException, doing: str) -> OSError:
    """The OSError, of the subclass that goes with its errno, for one of the library's errors."""
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
