"""One real S3 server for all tests of this folder, and an environment with nothing else in it."""

import os
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from kvtier.clock import unique_id
from tests.tiers.objectstore.servers import (
    ACCESS_KEY,
    BUCKET,
    SECRET_KEY,
    Weed,
    plain_client,
)


@pytest.fixture(scope="session", autouse=True)
def runtime() -> None:
    """The library keeps one event loop per process; have it before descriptors are counted."""
    nowhere = S3Store("nowhere", endpoint="https://127.0.0.1:9", retry_config={"max_retries": 0})
    with pytest.raises(BaseError):
        obstore.head(nowhere, "nothing")


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """A running server with one bucket."""
    server = Weed(tmp_path_factory.mktemp("weed"))
    try:
        server.start()
        server.make_bucket(BUCKET)
        yield server
    finally:
        server.stop()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials and endpoints of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def owner(plain_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that may do everything, over plain HTTP."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")


@pytest.fixture
def s3(owner: None, weed: Weed, monkeypatch: pytest.MonkeyPatch) -> Weed:
    """The real server, named by the environment."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", weed.endpoint)
    return weed


@pytest.fixture
def url(s3: Weed) -> str:
    """A prefix that no other test uses."""
    return f"s3://{BUCKET}/{unique_id()}"


@pytest.fixture
def client(url: str) -> S3Store:
    """The library itself, to do what a stranger may do below the prefix."""
    return plain_client(url.rpartition("/")[2])
