"""AWS credentials: what the environment holds must be usable, and the shared file is read.

Why it exists: the client library reads the environment, web identity, container and instance
credentials, but not `~/.aws/credentials`, which is how most people and many mounted secrets
hand them out. Invariants: the file is read again every few minutes, so that rotated keys are
picked up without a restart; nothing read here is kept, printed or put into an error.
"""

import configparser
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvtier.clock import wall_s
from kvtier.errors import InvalidSettings

if TYPE_CHECKING:
    from obstore.store import S3Credential

_REREAD: Final = timedelta(minutes=10)
_VARIABLES: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)
# Any of these is a source of its own, which goes before the file.
_SOURCES: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)


class SharedFile:
    """One profile of the file; calling it reads the file and returns what it holds now."""

    def __init__(self, path: Path, profile: str) -> None:
        self._path = path
        self._profile = profile

    def __call__(self) -> "S3Credential":
        """Blocks for one small read. Raises InvalidSettings naming the file and the profile."""
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
        parser = configparser.ConfigParser(interpolation=None)  # secrets may hold a %
        try:
            parser.read_string(self._path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidSettings(
                f"{self._path}: {error.strerror}; correct AWS_SHARED_CREDENTIALS_FILE, or unset "
                "AWS_PROFILE to do without the file"
            ) from None
        except (configparser.Error, UnicodeDecodeError):
            # The parser's own message repeats the line that it could not read.
            raise InvalidSettings(f"{self._path} is not a credentials file") from None
        if not parser.has_section(self._profile):
            raise InvalidSettings(f"{self._where}: there is no such profile; correct AWS_PROFILE")
        return parser[self._profile]


def check_variables(env: Mapping[str, str] = os.environ) -> None:
    """The library panics on a line break in one of them, and mounted secrets often end in one.

    Raises InvalidSettings naming the variable.
    """
    for name in _VARIABLES:
        value = env.get(name, "")
        if value != value.strip() or not value.isprintable():
            raise InvalidSettings(
                f"{name} begins or ends with a space or holds a line break: take it out, as with "
                f"{name}=$(cat FILE)"
            )


def find_shared_file(env: Mapping[str, str] = os.environ) -> SharedFile | None:
    """The file that applies, or None where another source goes first or there is no file.

    Raises InvalidSettings where the environment names a file or profile that is not there.
    """
    if any(env.get(name) for name in _SOURCES):
        return None
    named = env.get("AWS_SHARED_CREDENTIALS_FILE") or env.get("AWS_PROFILE")
    path = Path(env.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    found = SharedFile(path, env.get("AWS_PROFILE") or "default")
    if not named and not path.is_file():
        return None
    found()  # what is wrong with it is said at start
    return found
