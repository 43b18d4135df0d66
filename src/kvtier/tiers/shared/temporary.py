"""Files on their way into a shared folder: written whole before they get a name.

Why in the folder where they will be: a rename is one step only inside one file system, and
quotas and layouts are often set by folder. Why closed before they are named: network file
systems report failed writes there.

Invariant: a file that could not be finished is removed again, unless that is refused as well.
"""

import errno
import os
from collections.abc import Sequence
from typing import Literal

from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.files import StoreFiles
from kvtier.tiers.shared.handle import Handle
from kvtier.tiers.shared.names import TemporaryNames, join
from kvtier.tiers.shared.opening import Root, discard

Durability = Literal["none", "fdatasync", "fsync"]

TRIES = 64
"""Times a folder is made anew where a sweep keeps removing it, empty, before the file is in it."""


class TemporaryFiles:
    """Makes them, as durable as the setting asks. Any thread. Every method raises OSError."""

    def __init__(self, files: StoreFiles, names: TemporaryNames, durability: Durability) -> None:
        self._files = files
        self._names = names
        self._durability = durability

    def write(self, root: Root, folder: str, parts: Sequence[Buffer], flags: int) -> str:
        """Name of a new file in `folder` with the bytes of `parts`; makes the folder.

        `flags`: O_DIRECT or 0.
        """
        temporary, handle = self._create(root, folder, flags)
        try:
            try:
                handle.write(parts)
                if self._durability == "fdatasync":
                    handle.sync_data()
                elif self._durability == "fsync":
                    handle.sync()
            finally:
                handle.close()
        except BaseException:
            discard(temporary, root, self._files)
            raise
        return temporary

    def _create(self, root: Root, folder: str, flags: int) -> tuple[str, Handle]:
        flags |= os.O_WRONLY | os.O_CREAT | os.O_EXCL
        for _ in range(TRIES):
            temporary = self._names.next(folder)
            try:
                return temporary, Handle(self._files, temporary, flags, root.fd)
            except FileNotFoundError:
                self.make_folder(root, folder)
            except OSError:
                discard(temporary, root, self._files)  # some refuse what they have made
                raise
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), folder)

    def make_folder(self, root: Root, folder: str) -> None:
        """Make a folder and those above it; the caller tries again if a sweep takes one away."""
        made = ""
        try:
            for part in folder.split("/"):
                above, made = made, join(made, part)
                try:
                    self._files.make_folder(made, root.fd)
                except FileExistsError:
                    continue
                self.sync_folder(root, above)
        except FileNotFoundError:
            return

    def sync_folder(self, root: Root, folder: str) -> None:
        """Make its names durable, where the setting asks for that."""
        if self._durability != "fsync":
            return
        handle = Handle(self._files, folder or ".", os.O_RDONLY | os.O_DIRECTORY, root.fd)
        try:
            handle.sync()
        finally:
            handle.close()
