"""Checksums of blocks and headers: against accidents, or with a secret against forgery.

Why here: every tier verifies what it reads, and a block that moves between tiers keeps its
meaning. Invariants: the length and the key of a block are part of its checksum, so an intact
block under another's name fails, and so does one cut short. A number once given to an algorithm
is never given to another: it stands in files. A secret is in no message and no `repr`.
"""

import errno
import hmac
import os
import re
import stat
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from kvtier.blocks.key import BlockKey
from kvtier.errors import InvalidSettings

CHECKSUM_BYTES: Final = 16
SECRET_BYTES_MIN: Final = 32
SECRET_BYTES_MAX: Final = 64
_NO_BLOCK = b"\xff" * 8
"""Stands where a block's length would: no block is that long, so no header passes for a block."""
_HEX = re.compile(rb"(?:[0-9a-fA-F]{2}){%d,%d}" % (SECRET_BYTES_MIN, SECRET_BYTES_MAX))
_HOW_TO_MAKE = "make one with `(umask 077; openssl rand -hex 32 > FILE)`"

Payload = npt.NDArray[np.uint8]
"""Contiguous; exactly the bytes that count."""


class Checksum(Protocol):
    """Two functions of 16 bytes. Safe from any thread; the interpreter is free meanwhile."""

    @property
    def algorithm(self) -> int:
        """The number that stands in files."""
        ...

    def block(self, key: BlockKey, payload: Payload) -> bytes:
        """Over length, key and payload."""
        ...

    def header(self, data: bytes | memoryview) -> bytes:
        """Over `data`, which describes blocks. Never equal to a block's by construction."""
        ...


class Xxh3:
    """xxh3-128: sees every accident, at memory speed. Whoever can write can also forge it."""

    algorithm: Final = 1

    def block(self, key: BlockKey, payload: Payload) -> bytes:
        """Seeded with key and length."""
        seed = xxhash.xxh3_64_intdigest(key, payload.nbytes)
        # Arrays are buffers to the type checker from Python 3.12 on only.
        return xxhash.xxh3_128_digest(payload, seed)  # type: ignore[arg-type]

    def header(self, data: bytes | memoryview) -> bytes:
        """Not seeded."""
        return xxhash.xxh3_128_digest(data)


class HmacSha256:
    """HMAC-SHA256, its first 16 bytes: whoever lacks `secret` can make nothing that passes."""

    algorithm: Final = 2

    def __init__(self, secret: bytes) -> None:
        """`secret`: 32 to 64 bytes, from `load_key`."""
        if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
            raise ValueError(f"a secret of {len(secret)} bytes")
        self._keyed = hmac.new(secret, digestmod="sha256")

    def block(self, key: BlockKey, payload: Payload) -> bytes:
        """Over 8 bytes of length, key and payload."""
        mac = self._keyed.copy()
        mac.update(payload.nbytes.to_bytes(8, "little") + key)
        mac.update(payload)  # type: ignore[arg-type]
        return mac.digest()[:CHECKSUM_BYTES]

    def header(self, data: bytes | memoryview) -> bytes:
        """Over 8 bytes that no block begins with, and `data`."""
        mac = self._keyed.copy()
        mac.update(_NO_BLOCK)
        mac.update(data)
        return mac.digest()[:CHECKSUM_BYTES]


def checksum_for(key_file: Path | None, setting: str = "shared.key_file") -> Checksum:
    """What the settings ask for: keyed where a file with a secret is named. As `load_key`."""
    return Xxh3() if key_file is None else HmacSha256(load_key(key_file, setting))


def load_key(path: Path, setting: str = "shared.key_file") -> bytes:
    """The secret in `path`: 64 to 128 hex digits, or 32 to 64 bytes as they are.

    One newline at the end does not count. Raises InvalidSettings where the file cannot be read,
    is not a plain file, holds no such secret, or can be read by others than its owner.
    """
    try:
        raw = _read_private(path, setting)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidSettings(
            f"{setting}: {path} cannot be read: {reason}; {_HOW_TO_MAKE}"
        ) from error
    if len(raw) != SECRET_BYTES_MIN:  # there the newline is one of 32 random bytes
        raw = raw.removesuffix(b"\n")
    if _HEX.fullmatch(raw):
        return bytes.fromhex(raw.decode("ascii"))
    if not SECRET_BYTES_MIN <= len(raw) <= SECRET_BYTES_MAX:
        size = f"{len(raw)} bytes" if len(raw) <= 2 * SECRET_BYTES_MAX else "too many bytes"
        raise InvalidSettings(
            f"{setting}: {path} holds {size}; a secret is {SECRET_BYTES_MIN} to "
            f"{SECRET_BYTES_MAX} bytes or twice as many hex digits; {_HOW_TO_MAKE}"
        )
    return raw


def _read_private(path: Path, setting: str) -> bytes:
    """The start of the file. Judged by its descriptor, so that nobody swaps it in between."""
    # Without O_NONBLOCK a pipe in the file's place would be waited for.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a plain file")
        # A group may read it: that is how Kubernetes gives secrets to pods with an fsGroup.
        if mode & 0o037:
            raise InvalidSettings(
                f"{setting}: {path} has mode {mode & 0o777:04o}, so others than its owner "
                f"may use it; run `chmod 600 {path}` (in Kubernetes: defaultMode: 0400)"
            )
        return os.read(fd, 2 * SECRET_BYTES_MAX + 2)
    finally:
        os.close(fd)
