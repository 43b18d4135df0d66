"""The picker's TLS certificate: files that are reloaded when they change, or a self-signed one.

The self-signed certificate is created at the start and kept in memory only. It proves nothing about
the picker's identity, but gateways that connect without verification still get encryption.
"""

import contextlib
import datetime as dt
import ipaddress
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kvtier.errors import InvalidSettings
from kvtier.router.request import sockets

_DAYS: Final = 3650
"""Longer than any process runs, since a self-signed certificate is never replaced."""
_SKEW_S: Final = 3600
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""The cipher suites for TLS 1.2: HTTP/2 prohibits most others (RFC 9113, appendix A)."""


class CertificatePair(NamedTuple):
    """A private key and its certificate chain, both PEM."""

    key: bytes
    certificate: bytes


def self_signed(now: dt.datetime) -> CertificatePair:
    """Return a new P-256 key and a self-signed certificate for localhost. Takes about 1 ms."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kvtier endpoint picker")])
    names = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(seconds=_SKEW_S))
        .not_valid_after(now + dt.timedelta(days=_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    return CertificatePair(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        certificate.public_bytes(serialization.Encoding.PEM),
    )


def read_pair(key_path: Path, certificate_path: Path) -> CertificatePair:
    """Read a pair from files. Raises InvalidSettings if that fails or the two do not match."""
    pair = CertificatePair(
        sockets.read_file(key_path, sockets.KEY),
        sockets.read_file(certificate_path, sockets.CERTIFICATE),
    )
    judge = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with _in_memory(pair.certificate) as certificate, _in_memory(pair.key) as key:
        sockets.load_certificate(judge, certificate_path, key_path, files=(certificate, key))
    return pair


def context(pair: CertificatePair) -> ssl.SSLContext:
    """Return a server context for HTTP/2 over TLS 1.2 or later.

    Raises InvalidSettings if the pair cannot be used.
    """
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.minimum_version = ssl.TLSVersion.TLSv1_2
    found.set_ciphers(_CIPHERS)
    found.set_alpn_protocols(["h2"])
    try:
        with _in_memory(pair.certificate) as certificate, _in_memory(pair.key) as key:
            found.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise InvalidSettings(f"the certificate cannot be used: {error}") from error
    return found


@contextlib.contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """Yield a path to `content` in memory, for a library that reads only files."""
    descriptor = os.memfd_create("kvtier-tls", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


class CertificateReloader:
    """A pair in files that may be replaced at any time, as cert-manager does."""

    def __init__(self, key_path: Path, certificate_path: Path) -> None:
        """Read the files. Raises InvalidSettings if they cannot be used."""
        self._paths = (key_path, certificate_path)
        self._pair = read_pair(*self._paths)
        self._newest = context(self._pair)

    def context(self) -> ssl.SSLContext:
        """Return a context that checks the files at each new connection.

        It goes on with the previous pair while the files cannot be used.
        """
        first = context(self._pair)
        first.sni_callback = self._use_newest
        return first

    def _use_newest(self, connection: ssl.SSLObject, name: str, first: ssl.SSLContext) -> None:
        del name, first
        self._reload()
        connection.context = self._newest

    def _reload(self) -> None:
        try:
            found = CertificatePair(*(path.read_bytes() for path in self._paths))
            if found == self._pair:
                return
            pair = read_pair(*self._paths)
            newest = context(pair)
        except (OSError, InvalidSettings):  # only one file is replaced yet; the next call retries
            return
        self._pair, self._newest = pair, newest
