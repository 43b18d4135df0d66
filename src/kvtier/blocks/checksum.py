"""Checksums of blocks and headers: against accidents, or with a secret also against forgery.

Every tier verifies the blocks that it reads.

Invariants: the checksum of a block covers its length and its key, so a block that was cut short or
that is stored under another key fails. The number of an algorithm is stored in files, so it is
never reused for another one. A secret appears in no message and no `repr`.
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
"""Replaces a block's length in a header's HMAC. No block is that long, so no header passes for a
block."""
_HEX = re.compile(rb"(?:[0-9a-fA-F]{2}){%d,%d}" % (SECRET_BYTES_MIN, SECRET_BYTES_MAX))
_HOW_TO_MAKE = "make one with `(umask 077; openssl rand -hex 32 > FILE)`"

Payload = npt.NDArray[np.uint8]
"""The contiguous bytes of a block, without padding."""


class Checksum(Protocol):
    """A pair of functions that return 16 bytes each. Thread-safe; they release the GIL."""

    @property
    def algorithm(self) -> int:
        """The number of the algorithm, as stored in files."""
        ...

    def block(self, key: BlockKey, payload: Payload) -> bytes:
        """Return the checksum of a block: over its length, key and payload."""
        ...

    def header(self, data: bytes | memoryview) -> bytes:
        """Return the checksum of a header, which describes blocks."""
        ...


class Xxh3:
    """XXH3-128: detects every accident, at memory speed, but no forgery."""

    algorithm: Final = 1

    def block(self, key: BlockKey, payload: Payload) -> bytes:
        """Return XXH3-128 of the payload, seeded with key and length."""
        seed = xxhash.xxh3_64_intdigest(key, payload.nbytes)
        # Before Python 3.12, type checkers do not accept arrays as buffers.
        return xxhash.xxh3_128_digest(payload, seed)  # type: ignore[arg-type]

    def header(self, data: bytes | memoryview) -> bytes:
        """Return XXH3-128 of `data`, without a seed."""
        return xxhash.xxh3_128_digest(data)


class HmacSha256:
    """The first 16 bytes of HMAC-SHA256: only writers that know `secret` can create valid ones."""

    algorithm: Final = 2

    def __init__(self, secret: bytes) -> None:
        """Create a checksum with a secret of 32 to 64 bytes, as `load_key` returns it."""
        if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
            raise ValueError(f"a secret of {len(secret)} bytes")
        self._keyed = hmac.new(secret, digestmod="sha256")

    def block(self, key: BlockKey, payload: Payload) -> bytes:
        """Return the HMAC of 8 bytes of length, the key and the payload."""
        mac = self._keyed.copy()
        mac.update(payload.nbytes.to_bytes(8, "little") + key)
        mac.update(payload)  # type: ignore[arg-type]
        return mac.digest()[:CHECKSUM_BYTES]

    def header(self, data: bytes | memoryview) -> bytes:
        """Return the HMAC of `data` after 8 bytes that cannot be a block's length."""
        mac = self._keyed.copy()
        mac.update(_NO_BLOCK)
        mac.update(data)
        return mac.digest()[:CHECKSUM_BYTES]


def checksum_for(key_file: Path | None, setting: str = "shared.key_file") -> Checksum:
    """Return the checksum that the settings ask for: keyed if they name a file with a secret.

    Raises InvalidSettings like `load_key`.
    """
    return Xxh3() if key_file is None else HmacSha256(load_key(key_file, setting))


def load_key(path: Path, setting: str = "shared.key_file") -> bytes:
    """Load the secret in `path`: 64 to 128 hex digits, or 32 to 64 raw bytes.

    One trailing newline is ignored. Raises InvalidSettings if the file cannot be read, is not a
    regular file, holds no such secret, or is accessible to others than its owner.
    """
    try:
        raw = _read_private(path, setting)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidSettings(
            f"{setting}: {path} cannot be read: {reason}; {_HOW_TO_MAKE}"
        ) from error
    if len(raw) != SECRET_BYTES_MIN:  # A newline that ends 32 raw bytes belongs to the secret.
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
    """Read the file. Its mode is checked by descriptor, so it cannot be swapped in between."""
    # Without O_NONBLOCK, opening a FIFO would wait for its other end.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        # The group may read it, because Kubernetes mounts secrets that way for an fsGroup.
        if mode & 0o037:
            raise InvalidSettings(
                f"{setting}: {path} has mode {mode & 0o777:04o}, so others than its owner "
                f"have access; run `chmod 600 {path}` (in Kubernetes: defaultMode: 0400)"
            )
        return os.read(fd, 2 * SECRET_BYTES_MAX + 2)
    finally:
        os.close(fd)
