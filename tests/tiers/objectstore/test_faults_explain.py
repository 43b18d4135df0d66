import errno
import os

import pytest

from kvtier.tiers.objectstore.client import Location
from kvtier.tiers.objectstore.faults import explain

S3 = Location("s3", "bucket", "prefix")
GS = Location("gs", "bucket", "")
AZ = Location("az", "container", "")


@pytest.mark.parametrize(
    ("number", "place", "fix"),
    [
        (errno.ENODEV, S3, "there is no bucket 'bucket': create it"),
        (errno.EACCES, S3, "AWS_ACCESS_KEY_ID"),
        (errno.EACCES, GS, "GOOGLE_APPLICATION_CREDENTIALS"),
        (errno.EACCES, AZ, "AZURE_STORAGE_ACCOUNT_KEY"),
        (errno.ECONNREFUSED, S3, "AWS_ENDPOINT_URL"),
        (errno.ETIMEDOUT, GS, "GOOGLE_BASE_URL"),
        (errno.EHOSTUNREACH, AZ, "AZURE_ENDPOINT"),
        (errno.EREMCHG, S3, "AWS_REGION"),
        (errno.EOPNOTSUPP, S3, "use a newer server"),
        (errno.EIO, S3, "see the log of its server"),
    ],
)
def test_explanation_names_the_setting_and_the_fix(number: int, place: Location, fix: str) -> None:
    said = explain(OSError(number, f"list: {os.strerror(number)}"), place)
    assert said.startswith(f"objectstore.url: {place.url}: ")
    assert fix in said
    assert said.endswith(f"(list: {os.strerror(number)})")
    assert "\n" not in said


def test_explanation_names_the_endpoint_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://user:hunter2@store.example:8333")
    said = explain(OSError(errno.ECONNREFUSED, "no"), S3)
    assert "AWS_ENDPOINT_URL=store.example:8333 cannot be reached: correct it" in said
    assert "hunter2" not in said


def test_explanation_names_the_proxy_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROXY_URL", "http://user:hunter2@proxy.example:3128")
    said = explain(OSError(errno.ECONNREFUSED, "no"), S3)
    assert "own endpoint through AWS_PROXY_URL=proxy.example:3128 cannot be reached" in said
    assert "hunter2" not in said
