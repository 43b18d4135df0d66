"""The client of one bucket: time limits, retries, and what the environment says.

Why it exists: the library's own limits are minutes, and options given in code make it forget
those of the environment; both are settled here. Invariants: credentials come from the
environment or from files only; one request, with all of its retries, ends within its limit.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

from kvtier.errors import InvalidSettings
from kvtier.tiers.objectstore.credentials import check_variables, find_shared_file
from kvtier.tiers.objectstore.location import SETTING, Location

if TYPE_CHECKING:
    from obstore.store import AzureStore, ClientConfig, GCSStore, RetryConfig, S3Store

    Client: TypeAlias = S3Store | GCSStore | AzureStore

# A request is tried again only in the first fifth of its time, after a pause of a tenth at
# most, and each try may last seven tenths: all of it is over at ten tenths.
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
# Given as AWS_ALLOW_HTTP and so on. Certificates of a private authority: SSL_CERT_FILE.
_SWITCHES: Final = ("allow_http", "allow_invalid_certificates")
_OPTIONS: Final = (*_SWITCHES, "proxy_url", "proxy_excludes", "proxy_ca_certificate")
_TRUE: Final = ("1", "true", "on", "yes", "y")
_FALSE: Final = ("0", "false", "off", "no", "n")


def connect(location: Location, connect_s: float, request_s: float) -> "Client":
    """A client for `location`; opens no connection yet.

    A request, retries included, lasts `request_s` at most, its connection `connect_s`.
    Renewing the credentials of a cloud's metadata or token service has `request_s` of its own.
    Raises InvalidSettings: library not installed, an endpoint that is none, a credentials file
    that is none.
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
            # One object at a time is deleted here, and every server knows that request.
            config={"disable_bulk_delete": True},
            client_options=options,
            retry_config=retry,
            credential_provider=find_shared_file(),
        )
    except (BaseError, ValueError) as error:
        # The first line says what is missing; the rest is a dump of the configuration.
        reason = str(error).partition("\n")[0]
        raise InvalidSettings(f"{SETTING}: {location.url}: {reason}") from None


def endpoint(scheme: str, env: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """Variable and value of the endpoint that the environment names, for messages.

    None where the cloud's own is used. A user or password in it is left out.
    """
    return _first_named(_ENDPOINTS[scheme], env)


def proxy(scheme: str, env: Mapping[str, str] = os.environ) -> tuple[str, str] | None:
    """As `endpoint`, of the proxy; None where there is none."""
    return _first_named((f"{_PREFIXES[scheme]}_PROXY_URL",), env)


def _first_named(variables: Sequence[str], env: Mapping[str, str]) -> tuple[str, str] | None:
    for variable in variables:
        value = env.get(variable)
        if value:
            return variable, value.rpartition("@")[2]
    return None


def _client_options(scheme: str, connect_s: float, request_s: float) -> "ClientConfig":
    """Time limits, and the variables that the library drops once it is given any option."""
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
    """The library panics on an endpoint that is no URL, and says little on plain HTTP."""
    named = endpoint(scheme)
    if named is None:
        return
    variable, value = named
    url = _server_url(os.environ[variable])
    if url is None:
        raise InvalidSettings(f"{variable}: {value!r} is no URL; write https://host:port")
    if url.scheme == "http" and allow_http.strip().lower() not in _TRUE:
        raise InvalidSettings(
            f"{variable}: {value!r} is plain HTTP; use https://, or allow it with "
            f"{_PREFIXES[scheme]}_ALLOW_HTTP=true"
        )


def _server_url(text: str) -> SplitResult | None:
    """None where `text` is not the URL of a server."""
    try:
        url = urlsplit(text)
        has_server = bool(url.hostname) and url.port != 0
    except ValueError:  # brackets that do not pair, a port that is no number
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
