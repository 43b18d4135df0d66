"""Opening the folder that a tier's setting names, with one error message per mistake.

The disk tier and the shared folder report the same mistakes in the same words, each with the name
of its own setting.
"""

import errno
import os
from pathlib import Path

from kvtier.errors import InvalidSettings


def open_folder(setting: str, path: Path) -> int:
    """Create the folder (mode 0700) if it does not exist, and return a descriptor of it.

    The parent is not created: where a mount is missing, its mount point must not be filled instead.
    Raises InvalidSettings naming `setting` where there is no parent, where `path` is not a folder,
    and where this user may not open it.
    """
    try:
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)  # another host may create it meanwhile
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise InvalidSettings(
            f"{setting}: the parent folder of {path} does not exist; create {path.parent} "
            "or mount it"
        ) from error
    except (NotADirectoryError, FileExistsError) as error:  # a file, or a dangling link
        raise InvalidSettings(
            f"{setting}: {path} is not a folder; name a folder or remove the file"
        ) from error
    except OSError as error:
        raise unusable(setting, path, error) from error


def unusable(setting: str, path: Path, error: OSError) -> InvalidSettings:
    """Return the error to raise where the file system refuses what the tier needs to do."""
    if error.errno == errno.EROFS:
        return InvalidSettings(
            f"{setting}: {path} is on a read-only file system; mount it for reading and writing"
        )
    return InvalidSettings(
        f"{setting}: {path} cannot be used ({error.strerror}); "
        "name a folder that this user can read and write"
    )
