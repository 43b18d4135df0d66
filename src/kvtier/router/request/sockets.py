"""Certificates of a person's files; what is wrong with one is said with its flag and its path."""

import os
import ssl
from pathlib import Path
from typing import Final

from kvtier.errors import InvalidSettings

CERTIFICATE: Final = "--tls-certificate"
KEY: Final = "--tls-key"
_STRANGERS: Final = ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED")
"""OpenSSL's reasons where a key is of another certificate; the last where it is of another kind."""


def read_file(path: str | Path, flag: str) -> bytes:
    """The file. Raises InvalidSettings."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidSettings(
            f"{flag}: {path} cannot be read: {error.strerror or error}"
        ) from error


def load_trusted(context: ssl.SSLContext, path: str | Path, flag: str, *, file: str = "") -> None:
    """Check others by this PEM. Raises InvalidSettings.

    `file`: a copy of what has been read of `path`, which errors name.
    """
    if not file:
        read_file(path, flag)
    try:
        context.load_verify_locations(cafile=file or str(path))
    except ssl.SSLError as error:
        raise InvalidSettings(f"{flag}: {path} is no PEM certificate") from error


def client_context(path: str | None, flag: str) -> ssl.SSLContext | None:
    """Trusts this PEM and nobody else; None: whom the machine trusts. Raises InvalidSettings."""
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
    """Prove who we are by this pair. Raises InvalidSettings.

    `files`: copies of what has been read of the two paths, which errors name.
    """
    if files is None:
        read_file(certificate, CERTIFICATE)
        read_file(key, KEY)
    chain, private = files or (str(certificate), str(key))
    # By itself first: OpenSSL does not say which of the two it cannot understand.
    load_trusted(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), certificate, CERTIFICATE, file=chain)

    def encrypted() -> str:
        raise InvalidSettings(f"{KEY}: {key} is encrypted; give one that is not")

    try:
        context.load_cert_chain(chain, private, password=encrypted)
    except ssl.SSLError as error:
        if error.reason in _STRANGERS:
            why = f"{KEY}: the key {key} does not belong to the certificate {certificate}"
        elif error.reason is None:
            why = f"{KEY}: {key} is no PEM key"
        else:
            why = f"{CERTIFICATE}: {certificate} cannot be used: {error.reason}"
        raise InvalidSettings(why) from error


def cannot_listen(flags: str, host: str, port: int, error: OSError) -> InvalidSettings:
    """To be raised. The texts of asyncio's errors name the address too, so they are left out."""
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    number = error.errno or 0
    # Those of name look-ups are below 0 and have texts of their own.
    reason = os.strerror(number) if number > 0 else error.strerror or str(error)
    return InvalidSettings(f"{flags}: {shown} cannot be listened on: {reason}")
