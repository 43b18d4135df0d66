import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509

from kvtier.errors import InvalidSettings
from kvtier.router.epp import certificates

NOW = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)


def written(folder: Path, pair: certificates.CertificatePair) -> tuple[Path, Path]:
    key, certificate = folder / "tls.key", folder / "tls.crt"
    key.write_bytes(pair.key)
    certificate.write_bytes(pair.certificate)
    return key, certificate


def test_self_signed_certificate_is_for_localhost_and_unique() -> None:
    pair = certificates.self_signed(NOW)
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc
    assert certificates.self_signed(NOW).key != pair.key
    assert b"PRIVATE KEY" in pair.key


def test_read_pair_validates_files(tmp_path: Path) -> None:
    pair = certificates.self_signed(NOW)
    paths = written(tmp_path, pair)
    assert certificates.read_pair(*paths) == pair
    paths[0].write_bytes(certificates.self_signed(NOW).key)
    with pytest.raises(
        InvalidSettings, match=r"--tls-key: .*tls\.key does not belong to .*tls\.crt"
    ):
        certificates.read_pair(*paths)
    paths[1].write_text("nothing")
    with pytest.raises(InvalidSettings, match=r"--tls-certificate: .*tls\.crt is not a PEM"):
        certificates.CertificateReloader(*paths)
    with pytest.raises(InvalidSettings, match=r"--tls-key: .*no cannot be read: No such file"):
        certificates.read_pair(tmp_path / "no", paths[1])
