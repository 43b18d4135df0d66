"""The options and time limits that a client gets; tests with servers show that they hold."""

import sys
from datetime import timedelta

import pytest
from obstore.store import AzureStore, GCSStore, S3Store

from kvtier.errors import InvalidSettings
from kvtier.tiers.objectstore.client import Location, connect, endpoint, parse_url, proxy

PLACE = Location("s3", "bucket", "a/prefix")


def test_connect_returns_a_client_for_each_cloud(
    s3_owner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    for url, kind in (("s3", S3Store), ("gs", GCSStore), ("az", AzureStore)):
        client = connect(parse_url(f"{url}://bucket/a/prefix"), 1.0, 5.0)
        assert isinstance(client, kind)
        assert client.prefix == "a/prefix"


def test_retries_end_within_the_time_limit(s3_owner: None) -> None:
    for request_s in (0.1, 5.0, 60.0):
        client = connect(PLACE, 2.0, request_s)
        options, retry = client.client_options, client.retry_config
        assert options is not None
        assert retry is not None
        # The last try may begin this late, after one more pause, and then last a whole time-out.
        last = retry["retry_timeout"] + retry["backoff"]["max_backoff"]
        try_s = timedelta_of(options["timeout"])
        assert last + try_s <= timedelta(seconds=request_s * 1.001)
        assert timedelta_of(options["connect_timeout"]) <= min(timedelta(seconds=2), try_s)
        assert retry["backoff"]["init_backoff"] <= retry["backoff"]["max_backoff"]


def timedelta_of(value: object) -> timedelta:
    """Return as a timedelta what the library reports: the value given, or a text for it."""
    if isinstance(value, timedelta):
        return value
    return timedelta(seconds=sum(seconds_of(part) for part in str(value).split()))


def seconds_of(part: str) -> float:
    number = part.rstrip("abcdefghijklmnopqrstuvwxyz")
    units = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "m": 60.0}
    return float(number) * units[part.removeprefix(number)]


@pytest.mark.parametrize(
    ("variable", "value", "option"),
    [
        ("AWS_ALLOW_HTTP", "true", "allow_http"),
        ("AWS_PROXY_URL", "http://127.0.0.1:1", "proxy_url"),
        ("AWS_ALLOW_INVALID_CERTIFICATES", "true", "allow_invalid_certificates"),
    ],
)
def test_client_options_of_the_environment_are_kept(
    s3_owner: None, variable: str, value: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    options = connect(PLACE, 2.0, 5.0).client_options
    assert options is not None
    assert options[option] == value  # type: ignore[literal-required]


def test_invalid_endpoint_is_refused(s3_owner: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (
        "nonsense",
        "127.0.0.1:8333",
        "ftp://host",
        "http://",
        "http://u:hunter2@[::1",
        "http://u:hunter2@host:port",
        "http://host :9",
        "http://host:9\n",
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", value)
        with pytest.raises(
            InvalidSettings, match=r"^AWS_ENDPOINT_URL: .* is not a URL; write https"
        ) as caught:
            connect(PLACE, 2.0, 5.0)
        assert "hunter2" not in str(caught.value)


def test_invalid_switch_is_refused(s3_owner: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ALLOW_INVALID_CERTIFICATES", "perhaps")
    said = r"^AWS_ALLOW_INVALID_CERTIFICATES: 'perhaps' is neither true nor false"
    with pytest.raises(InvalidSettings, match=said):
        connect(PLACE, 2.0, 5.0)


def test_plain_http_must_be_allowed_explicitly(
    s3_owner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hunter2@127.0.0.1:1")
    connect(PLACE, 2.0, 5.0)
    for value in ("false", ""):
        monkeypatch.setenv("AWS_ALLOW_HTTP", value)
        with pytest.raises(InvalidSettings, match="AWS_ALLOW_HTTP=true") as caught:
            connect(PLACE, 2.0, 5.0)
        assert "127.0.0.1:1" in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_endpoint_and_proxy_for_messages_hide_passwords() -> None:
    assert endpoint("s3", {}) is None
    both = {"AWS_ENDPOINT_URL": "https://all", "AWS_ENDPOINT_URL_S3": "https://s3"}
    assert endpoint("s3", both) == ("AWS_ENDPOINT_URL_S3", "https://s3")
    assert endpoint("s3", {"AWS_ENDPOINT": "https://a:b@c"}) == ("AWS_ENDPOINT", "c")
    assert proxy("s3", {}) is None
    assert proxy("gs", {"GOOGLE_PROXY_URL": "http://a:b@c:1"}) == ("GOOGLE_PROXY_URL", "c:1")


def test_incomplete_credentials_are_refused(
    s3_owner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(
        InvalidSettings, match=r"(?i)objectstore\.url: s3://bucket.*secret"
    ) as caught:
        connect(PLACE, 2.0, 5.0)
    assert "\n" not in str(caught.value)


def test_credential_with_line_break_is_refused(
    s3_owner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_REGION"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "value\n")
            with pytest.raises(InvalidSettings, match=f"^{name} begins or ends"):
                connect(PLACE, 2.0, 5.0)


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(InvalidSettings, match=r"pip install 'kvtier\[objectstore\]'"):
        connect(PLACE, 2.0, 5.0)
