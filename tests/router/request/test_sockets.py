import datetime as dt
import errno
import socket
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from kvtier.errors import InvalidSettings
from kvtier.router.epp.certificates import self_signed
from kvtier.router.request import sockets
from kvtier.router.request.sockets import cannot_listen

_DAMAGED = "-----BEGIN {0}-----\naGVsbG8=\n-----END {0}-----\n"


def pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes = b"") -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption(),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pair = self_signed(dt.datetime.now(dt.UTC))
    own = serialization.load_pem_private_key(pair.key, None)
    assert isinstance(own, ec.EllipticCurvePrivateKey)
    files = {
        "c": pair.certificate,
        "k": pair.key,
        "other": pem(ec.generate_private_key(ec.SECP256R1())),
        "rsa": pem(rsa.generate_private_key(65537, 2048)),
        "encrypted": pem(own, b"secret"),
        "word": b"hello",
        "c-damaged": _DAMAGED.format("CERTIFICATE").encode(),
        "k-damaged": _DAMAGED.format("PRIVATE KEY").encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        ("c", "none", "--tls-key: {0}/none cannot be read: No such file or directory"),
        ("none", "k", "--tls-certificate: {0}/none cannot be read: No such file or directory"),
        ("", "k", "--tls-certificate: {0} cannot be read: Is a directory"),
        ("word", "k", "--tls-certificate: {0}/word is not a PEM certificate"),
        ("c-damaged", "k", "--tls-certificate: {0}/c-damaged is not a PEM certificate"),
        ("k", "c", "--tls-certificate: {0}/k is not a PEM certificate"),
        ("c", "c", "--tls-key: {0}/c is not a PEM key"),
        ("c", "k-damaged", "--tls-key: {0}/k-damaged is not a PEM key"),
        ("c", "encrypted", "--tls-key: {0}/encrypted is encrypted; provide an unencrypted key"),
        ("c", "other", "--tls-key: the key {0}/other does not belong to the certificate {0}/c"),
        ("c", "rsa", "--tls-key: the key {0}/rsa does not belong to the certificate {0}/c"),
    ],
)
def test_load_certificate_errors_name_flag_and_file(
    folder: Path, certificate: str, key: str, said: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with pytest.raises(InvalidSettings) as caught:
        sockets.load_certificate(context, folder / certificate, folder / key)
    assert str(caught.value) == said.format(folder)


def test_certificate_loads_and_can_be_trusted(folder: Path) -> None:
    sockets.load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), folder / "c", folder / "k")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    sockets.load_trusted(context, folder / "c", "--replica-ca")
    assert context.cert_store_stats()["x509"] == 1
    assert sockets.client_context(None, "--replica-ca") is None
    only = sockets.client_context(str(folder / "c"), "--replica-ca")
    assert only is not None
    assert only.check_hostname
    assert only.cert_store_stats()["x509"] == 1, "without the system's certificates"
    with pytest.raises(InvalidSettings, match=r"--replica-ca: .*word is not a PEM certificate"):
        sockets.load_trusted(context, folder / "word", "--replica-ca")


def test_load_certificate_reads_copies_and_names_the_paths(folder: Path) -> None:
    files = (str(folder / "c"), str(folder / "other"))
    with pytest.raises(InvalidSettings, match="the key /k does not belong to the certificate /c"):
        sockets.load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), "/c", "/k", files=files)


_BUSY = "error while attempting to bind on address ('::1', 80): address already in use"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EADDRINUSE, _BUSY), "Address already in use"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not"),
        (OSError("no address at all"), "no address at all"),
    ],
)
def test_cannot_listen_names_flags_address_and_reason_once(error: OSError, said: str) -> None:
    found = str(cannot_listen("--host, --port", "::1", 80, error))
    assert found.startswith(f"--host, --port: [::1]:80 cannot be listened on: {said}")
    assert found.count("::1") == 1
