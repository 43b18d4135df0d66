"""TLS contexts from certificate files, and the errors of opening a listening socket.

Every error is an InvalidSettings that names the flag and the path or address at fault.
"""

import os
import ssl
from pathlib import Path
from typing import Final

from kvtier.errors import InvalidSettings

CERTIFICATE: Final = "--tls-certificate"
KEY: Final = "--tls-key"
_STRANGERS: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""OpenSSL's reasons for a key that does not match the certificate; the last one means that the
key types differ."""


def read_file(path: str | Path, flag: str) -> bytes:
    """Return the content of a file. Raises InvalidSettings if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidSettings(
            f"{flag}: {path} cannot be read: {error.strerror or error}"
        ) from error


def load_trusted(context: ssl.SSLContext, path: str | Path, flag: str, *, file: str = "") -> None:
    """Trust the CA certificates of the PEM file `path`. Raises InvalidSettings.

    `file`: a copy of `path` to load instead; errors still name `path`.
    """
    if not file:
        read_file(path, flag)
    try:
        context.load_verify_locations(cafile=file or str(path))
    except ssl.SSLError as error:
        raise InvalidSettings(f"{flag}: {path} is not a PEM certificate") from error


def client_context(path: str | None, flag: str) -> ssl.SSLContext | None:
    """Return a context that trusts only the CA file `path`; None for the system's certificates.

    Raises InvalidSettings if `path` is not a PEM certificate.
    """
    if path is None:
        return None
    load_trusted(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), path, flag)
    return ssl.create_default_context(cafile=path)


def load_certificate(
    context: ssl.SSLContext,
    certificate: str | Path,
    key: str | Path,
    *,
    files: tuple[str, str] | None = None,
) -> None:
    """Load the certificate and key that this side presents. Raises InvalidSettings.

    `files`: copies of the two files to load instead; errors still name the original paths.
    """
    if files is None:
        read_file(certificate, CERTIFICATE)
        read_file(key, KEY)
    chain, private = files or (str(certificate), str(key))
    # Check the certificate alone first: OpenSSL does not say which of the two it cannot parse.
    load_trusted(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate, CERTIFICATE, file=chain)

    def encrypted() -> str:
        raise InvalidSettings(f"{KEY}: {key} is encrypted; provide an unencrypted key")

    try:
        context.load_cert_chain(chain, private, password=encrypted)
    except ssl.SSLError as error:
        if error.reason in _STRANGERS:
            why = f"{KEY}: the key {key} does not belong to the certificate {certificate}"
        elif error.reason is None:
            why = f"{KEY}: {key} is not a PEM key"
        else:
            why = f"{CERTIFICATE}: {certificate} cannot be used: {error.reason}"
        raise InvalidSettings(why) from error


def cannot_listen(flags: str, host: str, port: int, error: OSError) -> InvalidSettings:
    """Return the error to raise when `host:port`, given by `flags`, cannot be listened on.

    The reason is taken from the error number because asyncio's text repeats the address.
    """
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    number = error.errno or 0
    # Errors of name resolution have negative numbers that strerror() does not know.
    reason = os.strerror(number) if number > 0 else error.strerror or str(error)
    return InvalidSettings(f"{flags}: {shown} cannot be listened on: {reason}")
