import errno
import socket

import pytest

from kvtier.router.request.listening import cannot_listen

_BUSY = "error while attempting to bind on address ('::1', 80): address already in use"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EADDRINUSE, _BUSY), "Address already in use"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not"),
        (OSError("no address at all"), "no address at all"),
    ],
)
def test_flags_address_and_reason_are_said_once(error: OSError, said: str) -> None:
    found = str(cannot_listen("--host, --port", "::1", 80, error))
    assert found.startswith(f"--host, --port: [::1]:80 cannot be listened on: {said}")
    assert found.count("::1") == 1
