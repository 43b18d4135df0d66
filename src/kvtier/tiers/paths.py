"""The folder that a tier's setting names: made and opened, or refused with the fix.

Why here: the disk tier and the shared folder say the same of the same mistakes, each by the
name of its own setting.
"""

import errno
import os
from pathlib import Path

from kvtier.errors import InvalidSettings


def open_folder(setting: str, path: Path) -> int:
    """A descriptor of the folder, which is made (mode 0700) where it is not there.

    Its parent is not made: a mount that is missing must not become a folder beside it.
    Raises InvalidSettings naming `setting`: no parent, not a folder, not open to this user.
    """
    try:
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)  # another host may make it at the same time
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise InvalidSettings(
            f"{setting}: the parent folder of {path} does not exist; create {path.parent} "
            "or mount it"
        ) from error
    except (NotADirectoryError, FileExistsError) as error:  # a file; a link to nowhere
        raise InvalidSettings(
            f"{setting}: {path} is not a folder; name a folder or remove the file"
        ) from error
    except OSError as error:
        raise unusable(setting, path, error) from error


def unusable(setting: str, path: Path, error: OSError) -> InvalidSettings:
    """What to raise where the file system refuses what the tier has to do in the folder."""
    if error.errno == errno.EROFS:
        return InvalidSettings(
            f"{setting}: {path} is on a read-only file system; mount it for reading and writing"
        )
    return InvalidSettings(
        f"{setting}: {path} cannot be used ({error.strerror}); "
        "name a folder that this user can read and write"
    )
