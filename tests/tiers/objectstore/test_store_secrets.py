"""A secret appears in no message, traceback, log or `repr`, whatever is wrong with it."""

import logging
import traceback
from collections.abc import Callable

import pytest

from kvtier.errors import InvalidSettings
from kvtier.testing.samples import blank, content
from kvtier.tiers.objectstore import BucketStore
from tests.s3 import FaultyServer

SECRET = "hunter2hunter2"
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ALLOW_HTTP": "true"}
ACCOUNT = {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_ALLOW_HTTP": "true"}
NOWHERE = "http://127.0.0.1:9"
GIVEN: dict[str, tuple[str, dict[str, str]]] = {
    "refused connection": ("s3://bucket", {**KEYS, "AWS_ENDPOINT_URL": NOWHERE}),
    "token": ("s3://bucket", {**KEYS, "AWS_SESSION_TOKEN": SECRET, "AWS_ENDPOINT_URL": NOWHERE}),
    "endpoint": ("s3://bucket", {**KEYS, "AWS_ENDPOINT_URL": f"http://u:{SECRET}@127.0.0.1:9"}),
    "no endpoint": ("s3://bucket", {**KEYS, "AWS_ENDPOINT_URL": f"http://u:{SECRET}@[::1"}),
    "proxy": ("s3://bucket", {**KEYS, "AWS_PROXY_URL": f"http://u:{SECRET}@127.0.0.1:9"}),
    "half a credential": ("s3://bucket", {"AWS_SECRET_ACCESS_KEY": SECRET}),
    "no boolean": ("s3://bucket", {**KEYS, "AWS_UNSIGNED_PAYLOAD": "perhaps"}),
    "line break": ("s3://bucket", {**KEYS, "AWS_SECRET_ACCESS_KEY": f"{SECRET}\n"}),
    "url": (f"s3://key:{SECRET}@bucket", {}),
    "url like a port": (f"s3://key:{SECRET}/bucket", {}),
    "signature": (
        "az://container",
        {
            **ACCOUNT,
            "AZURE_STORAGE_SAS_TOKEN": f"sv=2025&sig={SECRET}",
            "AZURE_STORAGE_ENDPOINT": NOWHERE,
        },
    ),
    "no signature": ("az://container", {**ACCOUNT, "AZURE_STORAGE_SAS_TOKEN": SECRET}),
    "no account key": ("az://container", {**ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": f"{SECRET}!\n"}),
    "service account": ("gs://bucket", {"GOOGLE_SERVICE_ACCOUNT_KEY": SECRET}),
    "private key": (
        "gs://bucket",
        {
            "GOOGLE_SERVICE_ACCOUNT_KEY": f'{{"private_key": "{SECRET}", "private_key_id": "1", '
            '"client_email": "a", "disable_oauth": false}'
        },
    ),
}


def error_text(call: Callable[[], object]) -> str:
    """Return everything that a caller could print of the error that `call` raises."""
    with pytest.raises((InvalidSettings, OSError)) as caught:
        call()
    return "".join(traceback.format_exception(caught.value)) + repr(caught.value)


@pytest.mark.parametrize("case", GIVEN)
def test_secret_is_in_no_message_log_or_repr(
    case: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    url, env = GIVEN[case]
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.DEBUG)

    def start_and_use() -> None:
        store = BucketStore(url, connect_s=0.1, deadline_s=0.4)
        said.append(repr(store))
        said.append(error_text(store.check))
        said.append(error_text(lambda: store.publish("a", [content(1, 10)])))
        store.read("a", 0, [blank(10)])

    said: list[str] = []
    said.append(error_text(start_and_use))
    said += [caplog.text, *capfd.readouterr()]
    assert SECRET not in "".join(said)


def test_secret_in_an_answer_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    echo = f"<Error><Code>AccessDenied</Code><Message>{SECRET}</Message></Error>".encode()
    with FaultyServer("ignored").running() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        store = BucketStore("s3://bucket")
        server.failures = [(403, echo)] * 2
        said = error_text(store.check) + error_text(lambda: store.read("a", 0, [blank(10)]))
        store.close()
    assert "403 AccessDenied" in said
    assert SECRET not in said + caplog.text
