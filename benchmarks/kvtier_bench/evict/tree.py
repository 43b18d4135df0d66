"""A tree of many small segments, as engines leave it.

Every file is complete: a header that verifies, a payload of one page, and an inode of its own.
Access journals record the reads; access times record the same reads exactly, for evictors that use
those. The same seed gives the same tree.
"""

import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from kvtier.blocks.checksum import Xxh3
from kvtier.blocks.key import BlockKey
from kvtier.clock import wall_s
from kvtier.errors import Corrupt
from kvtier.tiers.base import Buffer
from kvtier.tiers.shared.format import (
    PAGE_BYTES,
    Segment,
    encode_header,
    segment_name,
    space_folder,
)
from kvtier.tiers.shared.manifest import ensure_manifest
from kvtier.tiers.shared.posix import PosixStore
from kvtier.tiers.shared.reading import SegmentHeaders
from kvtier_bench.evict.pattern import History, Numbers
from kvtier_bench.micro import parts

FILE_BYTES: Final = 2 * PAGE_BYTES
"""One page of header and one page of payload."""
SPACE: Final = msgspec.structs.replace(parts.SPACE, model="bench", block_bytes=PAGE_BYTES)
"""The key space of the benchmarks, with the block size that a check of the files compares."""
_REPORT_EVERY: Final = 50_000


def key_of(number: int) -> BlockKey:
    """Return the key of file `number`, a hash and group 0."""
    return BlockKey(sha256(number.to_bytes(8, "big")).digest() + bytes(4))


class FileTree:
    """A store in `root` with one key space."""

    def __init__(self, root: Path, files: int) -> None:
        self.root = root
        self.files = files
        self.folder = space_folder(SPACE)
        self.blocks = root / self.folder / "blocks"

    def build(self, history: History, progress: Callable[[int], None]) -> None:
        """Write the tree, about 0.1 ms per file; call `progress` with the number of files done."""
        store = PosixStore(self.root, direct="never")
        ensure_manifest(store, SPACE)
        store.close()
        for digits in range(16**3):
            (self.blocks / f"{digits:03x}").mkdir(parents=True, exist_ok=True, mode=0o700)
        checksum = Xxh3()
        payload = np.zeros(PAGE_BYTES, np.uint8)
        root_fd = os.open(self.root / self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for number in range(self.files):
                _write(root_fd, key_of(number), payload, checksum)
                if number % _REPORT_EVERY == 0:
                    progress(number)
        finally:
            os.close(root_fd)
        self._set_times(history)
        os.sync()  # otherwise the measured command would wait for these writes
        self._write_journals(history)

    def _set_times(self, history: History) -> None:
        """Set the files' access and modification times according to the history."""
        now_s = wall_s()
        read_s, written_s = now_s - history.read_age_s, now_s - history.written_age_s
        root_fd = os.open(self.root / self.folder, os.O_RDONLY | os.O_DIRECTORY)
        for number in range(self.files):
            name = segment_name(key_of(number))
            os.utime(name, (read_s[number], written_s[number]), dir_fd=root_fd)
        os.close(root_fd)

    def _write_journals(self, history: History) -> None:
        """Write the access journals, as readers do."""
        access = self.root / self.folder / "access"
        access.mkdir(mode=0o700)
        now_s = wall_s()
        for count, window in enumerate(history.windows):
            if len(window.files):
                path = access / f"bench-1-0-{count:08d}.log"
                lines = (f"{segment_name(key_of(number))}\n" for number in window.files.tolist())
                path.write_text("".join(lines))
                time_s = now_s - window.age_s
                os.utime(path, (time_s, time_s))

    def left(self) -> npt.NDArray[np.bool_]:
        """Return for each file, by number, whether it still exists."""
        found: set[str] = set()
        for folder in os.scandir(self.blocks):
            found.update(entry.name for entry in os.scandir(folder))
        names = (f"{key_of(number).hex()}.kvt" for number in range(self.files))
        return np.fromiter((name in found for name in names), np.bool_, self.files)

    def folders(self, files: int) -> list[Path]:
        """Return the first folders in name order that contain `files` files or a few more."""
        chosen: list[Path] = []
        for folder in sorted(self.blocks.iterdir()):
            if files <= 0:
                break
            chosen.append(folder)
            files -= len(os.listdir(folder))
        return chosen

    def damaged(self, numbers: Numbers) -> int:
        """Return how many of these files do not verify."""
        store = PosixStore(self.root, direct="never")
        digest = bytes.fromhex(SPACE.digest)
        headers = SegmentHeaders(store, self.folder, Xxh3(), digest, SPACE.block_bytes)
        failed = 0
        for number in numbers.tolist():
            try:
                failed += headers.load(key_of(number)) is None
            except Corrupt:
                failed += 1
        store.close()
        return failed


def _write(root_fd: int, key: BlockKey, payload: Buffer, checksum: Xxh3) -> None:
    segment = Segment(
        keys=(key,),
        checksums=(checksum.block(key, payload),),
        parent=None,
        block_bytes=PAGE_BYTES,
        space_digest=bytes.fromhex(SPACE.digest),
        algorithm=checksum.algorithm,
    )
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = os.open(segment_name(key), flags, 0o600, dir_fd=root_fd)
    try:
        os.write(fd, encode_header(segment, checksum) + payload.tobytes())
    finally:
        os.close(fd)
