"""TLS of the picker: files, read again when they are exchanged, or a certificate of its own.

The one of its own is made at the start, lives in memory only and proves nothing about who
answers: gateways that reach the picker with verification switched off still get encryption.
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
"""Longer than any process lives: nobody can exchange it while it runs."""
_SKEW_S: Final = 3600
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: HTTP/2 forbids most of the others."""


class CertificatePair(NamedTuple):
    """PEM."""

    key: bytes
    certificate: bytes


def self_signed(now: dt.datetime) -> CertificatePair:
    """A new key on P-256 and its certificate, for localhost; takes about a millisecond."""
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
    """Raises InvalidSettings where they cannot be read, or do not belong together."""
    pair = CertificatePair(
        sockets.read_file(key_path, sockets.KEY),
        sockets.read_file(certificate_path, sockets.CERTIFICATE),
    )
    judge = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with _in_memory(pair.certificate) as certificate, _in_memory(pair.key) as key:
        sockets.load_certificate(judge, certificate_path, key_path, files=(certificate, key))
    return pair


def context(pair: CertificatePair) -> ssl.SSLContext:
    """TLS 1.2 and above, HTTP/2 in it. Raises InvalidSettings for a pair that cannot be used."""
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
    """A path to it, for a library that reads paths only; nothing is written to a disk."""
    descriptor = os.memfd_create("kvtier-tls", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


class CertificateReloader:
    """A pair in files that may be exchanged while we run, as cert-manager does."""

    def __init__(self, key_path: Path, certificate_path: Path) -> None:
        """Raises InvalidSettings."""
        self._paths = (key_path, certificate_path)
        self._pair = read_pair(*self._paths)
        self._newest = context(self._pair)

    def context(self) -> ssl.SSLContext:
        """Looks at the files with each new connection; a broken pair is not taken."""
        first = context(self._pair)
        first.sni_callback = self._exchange
        return first

    def _exchange(self, connection: ssl.SSLObject, name: str, first: ssl.SSLContext) -> None:
        del name, first
        self._look()
        connection.context = self._newest

    def _look(self) -> None:
        try:
            found = CertificatePair(*(path.read_bytes() for path in self._paths))
            if found == self._pair:
                return
            pair = read_pair(*self._paths)
            newest = context(pair)
        except (OSError, InvalidSettings):  # half of it is exchanged: the next sees the rest
            return
        self._pair, self._newest = pair, newest
