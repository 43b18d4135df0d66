"""API keys: those of clients, and the one that the router sends to replicas.

Invariants: keys are compared in constant time; they are never logged or echoed, and a client's key
for the router is never passed on.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from kvtier.errors import InvalidSettings
from kvtier.router.request.message import Fields, first_value
from kvtier.router.route.options import API_KEY, REPLICA_KEY, RouteOptions

_REMARK: Final = re.compile(r"(?:^|\s)#")


class ApiKeys:
    """The API keys that clients may use. Without keys, every client is admitted."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        """Whether clients need a key."""
        return bool(self._digests)

    def admit(self, fields: Fields) -> bool:
        """Return True if the headers have a known key, in OpenAI's or Anthropic's form."""
        if not self._digests:
            return True
        scheme, _, shown = first_value(fields, b"authorization").partition(" ")
        if scheme.lower() != "bearer":
            shown = first_value(fields, b"x-api-key")
        digest = _digest(shown.strip())
        # Compare with all keys, so that the time does not depend on which one matches.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def client_keys(options: RouteOptions, env: Mapping[str, str]) -> ApiKeys:
    """Return the keys of `--api-keys` and of its variable. Raises InvalidSettings."""
    keys = read_keys(options.api_keys, "--api-keys") if options.api_keys else []
    if key := env.get(API_KEY, "").strip():
        keys.append(key)
    return ApiKeys(keys)


def replica_key(options: RouteOptions, env: Mapping[str, str]) -> str | None:
    """Return the key of `--replica-key` or of its variable, if any. Raises InvalidSettings."""
    if options.replica_key is None:
        return env.get(REPLICA_KEY, "").strip() or None
    keys = read_keys(options.replica_key, "--replica-key")
    if len(keys) > 1:
        raise InvalidSettings(f"--replica-key: {options.replica_key} has more than one key")
    return keys[0]


def read_keys(path: str, where: str) -> list[str]:
    """Read a file with one key per line; `#` begins a comment, after a key only behind a space.

    Raises InvalidSettings.
    """
    try:
        text = Path(os.path.expanduser(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidSettings(f"{where}: {path} cannot be read: {reason}") from error
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        key = _REMARK.split(line, 1)[0].strip()
        if not key.isascii() or len(key.split()) > 1:
            raise InvalidSettings(
                f"{where}: {path} line {number}: a key is one word of ASCII characters"
            )
        if key:
            keys.append(key)
    if not keys:
        raise InvalidSettings(f"{where}: {path} has no key")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
