"""The client of one bucket: its URL, credentials, time limits and retries.

The library's own time limits are minutes, and once it is given any option in code it ignores those
of the environment; `connect` corrects both. The library reads credentials from the environment, web
identity, container and instance metadata, but not from `~/.aws/credentials`, the place where many
users and mounted secrets have them; `SharedFile` reads that.

Invariants: credentials come only from the environment or from files, never from a URL, and neither
an error nor a log shows one. The credentials file is read again every few minutes, so that rotated
keys are used without a restart. One request, retries included, ends within its limit.
"""

import configparser
import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias
from urllib.parse import SplitResult, urlsplit

from kvtier.clock import wall_s
from kvtier.errors import InvalidSettings
from kvtier.tiers.shared.store import check_folder

if TYPE_CHECKING:
    from obstore.store import AzureStore, ClientConfig, GCSStore, RetryConfig, S3Credential, S3Store

    Client: TypeAlias = S3Store | GCSStore | AzureStore

SETTING: Final = "objectstore.url"
EXAMPLES: Final = "s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"

_URL: Final = re.compile(
    r"(?P<scheme>[a-z0-9]+)://(?P<bucket>[A-Za-z0-9][A-Za-z0-9._-]+)(?:/(?P<prefix>.+?)?)?/?"
)
_SCHEMES: Final = frozenset({"s3", "gs", "az"})


class Location(NamedTuple):
    """A bucket (on Azure, a container) and the prefix of all names in it, which may be empty."""

    scheme: str
    bucket: str
    prefix: str

    @property
    def url(self) -> str:
        """The URL, for messages; it contains no credential."""
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")


def parse_url(url: str) -> Location:
    """Parse a bucket's URL. Raises InvalidSettings with the fix, which repeats no secret."""
    place = url.partition("://")[2] or url
    if any(mark in place for mark in "@:?#"):  # it may contain a secret, so it is not repeated
        raise InvalidSettings(
            f"{SETTING}: a bucket's URL holds no credentials, no port and no query; write "
            f"{EXAMPLES}, name another endpoint with AWS_ENDPOINT_URL, and give credentials in the "
            "environment or a file (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_KEY)"
        )
    matched = _URL.fullmatch(url)
    if matched is None or matched["scheme"] not in _SCHEMES:
        raise InvalidSettings(f"{SETTING}: {url!r} is not a bucket's URL; write {EXAMPLES}")
    try:
        prefix = check_folder(matched["prefix"] or "")
    except ValueError as error:
        raise InvalidSettings(f"{SETTING}: {url!r}: {error}") from None
    return Location(matched["scheme"], matched["bucket"], prefix)


_REREAD: Final = timedelta(minutes=10)
_VARIABLES: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
# Each of these is a source of credentials that precedes the file.
_SOURCES: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)


class SharedFile:
    """One profile of the AWS credentials file; calling it reads the file."""

    def __init__(self, path: Path, profile: str) -> None:
        self._path = path
        self._profile = profile

    def __call__(self) -> "S3Credential":
        """Read the file and return the credentials. InvalidSettings names the file and profile."""
        section = self._section()
        try:
            return {
                "access_key_id": section["aws_access_key_id"],
                "secret_access_key": section["aws_secret_access_key"],
                "token": section.get("aws_session_token"),
                "expires_at": datetime.fromtimestamp(wall_s(), UTC) + _REREAD,
            }
        except KeyError as missing:
            raise InvalidSettings(f"{self._where}: {missing.args[0]} is missing") from None

    @property
    def _where(self) -> str:
        return f"{self._path}, profile {self._profile!r}"

    def _section(self) -> Mapping[str, str]:
        parser = configparser.ConfigParser(interpolation=None)  # a secret may contain %
        try:
            parser.read_string(self._path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidSettings(
                f"{self._path}: {error.strerror}; correct AWS_SHARED_CREDENTIALS_FILE, or unset "
                "AWS_PROFILE to do without the file"
            ) from None
        except (configparser.Error, UnicodeDecodeError):
            # The parser's own message repeats the line that it cannot read.
            raise InvalidSettings(f"{self._path} is not a credentials file") from None
        if not parser.has_section(self._profile):
            raise InvalidSettings(f"{self._where}: there is no such profile; correct AWS_PROFILE")
        return parser[self._profile]


def check_variables(env: Mapping[str, str] = os.environ) -> None:
    """Raise InvalidSettings, naming the variable, if one has spaces at its ends or a line break.

    The library panics on a line break in these variables, and mounted secrets often end with one.
    """
    for name in _VARIABLES:
        value = env.get(name, "")
        if value != value.strip() or not value.isprintable():
            raise InvalidSettings(
                f"{name} begins or ends with a space or contains a line break: remove it, as with "
                f"{name}=$(cat FILE)"
            )


def find_shared_file(env: Mapping[str, str] = os.environ) -> SharedFile | None:
    """Return the credentials file; None where another source precedes it or it does not exist.

    Raises InvalidSettings where the environment names a file or profile that does not exist.
    """
    if any(env.get(name) for name in _SOURCES):
        return None
    named = env.get("AWS_SHARED_CREDENTIALS_FILE") or env.get("AWS_PROFILE")
    path = Path(env.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    found = SharedFile(path, env.get("AWS_PROFILE") or "default")
    if not named and not path.is_file():
        return None
    found()  # raises at start if the file is invalid
    return found


# A request is tried again only during the first fifth of its time, after a pause of at most a
# tenth, and each try may last seven tenths. All of this ends after ten tenths.
_RETRY_SHARE: Final = 0.2
_PAUSE_SHARE: Final = 0.1
_TRY_SHARE: Final = 0.7
_RETRIES: Final = 3

_PREFIXES: Final = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}
_ENDPOINTS: Final = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
# Set as AWS_ALLOW_HTTP and so on. SSL_CERT_FILE names the certificates of a private authority.
_SWITCHES: Final = ("allow_http", "allow_invalid_certificates")
_OPTIONS: Final = (*_SWITCHES, "proxy_url", "proxy_excludes", "proxy_ca_certificate")
_TRUE: Final = ("1", "true", "on", "yes", "y")
_FALSE: Final = ("0", "false", "off", "no", "n")


def connect(location: Location, connect_s: float, request_s: float) -> "Client":
    """Return a client for `location`, which opens no connection yet.

    A request, retries included, takes at most `request_s`, its connection at most `connect_s`. The
    renewal of credentials from a cloud's metadata or token service has another `request_s`. Raises
    InvalidSettings where the library is not installed, and where the endpoint or the credentials
    file is invalid.
    """
    try:
        from obstore import store
        from obstore.exceptions import BaseError
    except ImportError:
        raise InvalidSettings(
            f"{SETTING}: object stores need the library obstore: pip install 'kvtier[objectstore]'"
        ) from None
    if location.scheme == "s3":
        check_variables()
    options = _client_options(location.scheme, connect_s, request_s)
    retry = _retry_config(request_s)
    prefix = location.prefix or None
    try:
        if location.scheme == "gs":
            return store.GCSStore(
                location.bucket, prefix=prefix, client_options=options, retry_config=retry
            )
        if location.scheme == "az":
            return store.AzureStore(
                location.bucket, prefix=prefix, client_options=options, retry_config=retry
            )
        return store.S3Store(
            location.bucket,
            prefix=prefix,
            # Objects are deleted one by one, with the request that every server supports.
            config={"disable_bulk_delete": True},
            client_options=options,
            retry_config=retry,
            credential_provider=find_shared_file(),
        )
    except (BaseError, ValueError) as error:
        # The first line says what is wrong; the rest is a dump of the configuration.
        reason = str(error).partition("\n")[0]
        raise InvalidSettings(f"{SETTING}: {location.url}: {reason}") from None


def endpoint(scheme: str, env: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """Return the variable that sets the endpoint and its value, without user and password.

    For messages. None where the cloud's own endpoint is used.
    """
    return _first_named(_ENDPOINTS[scheme], env)


def proxy(scheme: str, env: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """Return the variable that sets the proxy and its value, like `endpoint`; None if unset."""
    return _first_named((f"{_PREFIXES[scheme]}_PROXY_URL",), env)


def _first_named(variables: Sequence[str], env: Mapping[str, str]) -> tuple[str, str] | None:
    for variable in variables:
        value = env.get(variable)
        if value:
            return variable, value.rpartition("@")[2]
    return None


def _client_options(scheme: str, connect_s: float, request_s: float) -> "ClientConfig":
    """Return the time limits, and the options that the library no longer reads from variables."""
    try_s = request_s * _TRY_SHARE
    options: ClientConfig = {
        "timeout": timedelta(seconds=try_s),
        "connect_timeout": timedelta(seconds=min(connect_s, try_s)),
    }
    for option in _OPTIONS:
        variable = f"{_PREFIXES[scheme]}_{option.upper()}"
        value = os.environ.get(variable)
        if not value:
            continue
        if option in _SWITCHES and value.strip().lower() not in (*_TRUE, *_FALSE):
            raise InvalidSettings(f"{variable}: {value!r} is neither true nor false")
        options[option] = value
    _check_endpoint(scheme, str(options.get("allow_http", "")))
    return options


def _check_endpoint(scheme: str, allow_http: str) -> None:
    """Raise InvalidSettings for an endpoint that is no URL, or plain HTTP that is not allowed.

    The library panics on the former and hardly explains the latter.
    """
    named = endpoint(scheme)
    if named is None:
        return
    variable, value = named
    url = _server_url(os.environ[variable])
    if url is None:
        raise InvalidSettings(f"{variable}: {value!r} is not a URL; write https://host:port")
    if url.scheme == "http" and allow_http.strip().lower() not in _TRUE:
        raise InvalidSettings(
            f"{variable}: {value!r} is plain HTTP; use https://, or allow it with "
            f"{_PREFIXES[scheme]}_ALLOW_HTTP=true"
        )


def _server_url(text: str) -> SplitResult | None:
    """Parse the URL of a server; None where `text` is not one."""
    try:
        url = urlsplit(text)
        has_server = bool(url.hostname) and url.port != 0
    except ValueError:  # unbalanced brackets, or a port that is not a number
        return None
    is_plain = text.isprintable() and " " not in text
    return url if has_server and is_plain and url.scheme in ("http", "https") else None


def _retry_config(request_s: float) -> "RetryConfig":
    pause_s = request_s * _PAUSE_SHARE
    return {
        "max_retries": _RETRIES,
        "retry_timeout": timedelta(seconds=request_s * _RETRY_SHARE),
        "backoff": {
            "init_backoff": timedelta(seconds=min(0.05, pause_s)),
            "max_backoff": timedelta(seconds=pause_s),
            "base": 2,
        },
    }
