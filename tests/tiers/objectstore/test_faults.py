"""Translation of texts as the library writes them; tests with servers show that it does."""

import errno

import pytest
from obstore.exceptions import (
    AlreadyExistsError,
    GenericError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from kvtier.tiers.objectstore.faults import to_os_error, translated

SIGNED = "https://host/container/blob?sv=2025&sig=hunter2"
STATUS = (
    "Error performing PUT {} in 1ms - Server returned non-2xx status code: {}: <Error>{}</Error>"
)


def said(status: str, code: str = "") -> str:
    return STATUS.format(SIGNED, status, f"<Code>{code}</Code>" if code else "")


@pytest.mark.parametrize(
    ("error", "kind", "number"),
    [
        (FileNotFoundError(said("404 Not Found", "NoSuchKey")), FileNotFoundError, errno.ENOENT),
        (FileNotFoundError(said("404 Not Found", "NoSuchBucket")), OSError, errno.ENODEV),
        (FileNotFoundError("not found"), FileNotFoundError, errno.ENOENT),
        (AlreadyExistsError(said("412 Precondition Failed")), FileExistsError, errno.EEXIST),
        (AlreadyExistsError("taken"), FileExistsError, errno.EEXIST),
        (PermissionDeniedError(said("403 Forbidden", "X")), PermissionError, errno.EACCES),
        (UnauthenticatedError("who"), PermissionError, errno.EACCES),
        (GenericError(said("507 Insufficient Storage")), OSError, errno.ENOSPC),
        (GenericError(said("418 Teapot")), OSError, errno.EIO),
        (GenericError("source: TimedOut,"), TimeoutError, errno.ETIMEDOUT),
        (
            GenericError("Os {\n    code: 111,\n    kind: ConnectionRefused,"),
            ConnectionRefusedError,
            errno.ECONNREFUSED,
        ),
        (GenericError("Os { code: 104, kind: "), ConnectionResetError, errno.ECONNRESET),
        (GenericError('ConnectError("dns error", '), OSError, errno.EHOSTUNREACH),
        (GenericError("PUT http://169.254.169.254/latest/api"), PermissionError, errno.EACCES),
        (GenericError("something new"), OSError, errno.EIO),
        (NotImplementedError("create"), OSError, errno.EOPNOTSUPP),
    ],
)
def test_library_errors_are_translated_to_class_and_errno(
    error: Exception, kind: type[OSError], number: int
) -> None:
    with pytest.raises(kind, match="] read a: ") as caught, translated("read a"):
        raise error
    assert caught.value.errno == number
    assert caught.value.__suppress_context__
    assert "hunter2" not in str(caught.value)


def test_error_contains_status_and_code_of_the_server() -> None:
    error = to_os_error(GenericError(said("503 Slow Down", "SlowDown")), "put x")
    assert error.strerror == "put x: the server said 503 SlowDown"


def test_error_contains_only_a_one_word_code() -> None:
    error = to_os_error(GenericError(said("503", "hunter2 </Code><Code>\n")), "put x")
    assert error.strerror == "put x: the server said 503"


def test_os_error_with_errno_is_not_translated() -> None:
    with pytest.raises(OSError, match="closed") as caught, translated("read a"):
        raise OSError(errno.EBADF, "closed")
    assert caught.value.errno == errno.EBADF


def test_panic_of_the_library_is_eio() -> None:
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(OSError, match="the client library failed"), translated("read a"):
        raise panic("called `Option::unwrap()`")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, AssertionError])
def test_other_exceptions_are_not_translated(error: type[BaseException]) -> None:
    with pytest.raises(error), translated("read a"):
        raise error
