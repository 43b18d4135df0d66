"""The manifest of a key space: a readable description of what the blocks below a folder are.

The name of the folder holds only the start of the digest; the manifest tells a human which model
and layout it stands for. It also says how blocks are verified. An engine without the secret, or
with another one, would take every good block for a damaged one and move it away, so it is refused
at start. Invariant: a manifest is published once and never changed.
"""

import errno
from typing import Final

import msgspec
import numpy as np

from kvtier.blocks.checksum import Checksum, Xxh3
from kvtier.blocks.key import KeySpace
from kvtier.errors import InvalidSettings
from kvtier.tiers.files import MANIFEST_NAME, manifest_format
from kvtier.tiers.shared.format import space_folder
from kvtier.tiers.shared.store import Store

FORMAT: Final = 1
_BYTES_MAX = 1 << 20
_ATTEMPTS = 3
_WITNESS = b"kvtier manifest\n"


class SpaceManifest(msgspec.Struct, frozen=True, kw_only=True):
    """A key space, and how the checksums of its blocks are made."""

    format: int = FORMAT
    algorithm: int
    """The algorithm of block and header checksums: 1 (no secret) or 2 (with a secret)."""
    witness: str
    """Hex of `Checksum.header` over the digest: equal only if the secrets are."""
    space: KeySpace


def manifest_of(space: KeySpace, checksum: Checksum) -> SpaceManifest:
    """Return the manifest that a writer with this checksum publishes."""
    witness = checksum.header(_WITNESS + bytes.fromhex(space.digest))
    return SpaceManifest(algorithm=checksum.algorithm, witness=witness.hex(), space=space)


def encode_manifest(manifest: SpaceManifest) -> bytes:
    """Return the manifest as indented JSON, its fields in the order of their names."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"


def parse_manifest(raw: bytes) -> SpaceManifest:
    """Parse a manifest; InvalidSettings where `raw` is none, or has another format."""
    version = manifest_format(raw)
    if version != FORMAT:
        newer = " of a newer kvtier" if version > FORMAT else ""
        raise InvalidSettings(f"format {version}{newer}; this one reads {FORMAT}")
    try:
        return msgspec.json.decode(raw, type=SpaceManifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidSettings(f"{MANIFEST_NAME} cannot be read: {error}") from error


def ensure_manifest(
    store: Store,
    space: KeySpace,
    checksum: Checksum | None = None,
    setting: str = "shared.path",
) -> str:
    """Return the folder of `space`, after publishing its manifest or comparing the one found.

    `checksum` None: no secret. `setting` is the setting that names the store. Raises
    InvalidSettings where the manifest found does not fit, and OSError.
    """
    folder = space_folder(space)
    name = f"{folder}/{MANIFEST_NAME}"
    wanted = manifest_of(space, checksum or Xxh3())
    data = np.frombuffer(encode_manifest(wanted), np.uint8)
    for _ in range(_ATTEMPTS):
        raw = _read(store, name, setting)
        if raw is not None:
            _compare(wanted, raw, name, setting)
            return folder
        if store.publish(name, [data]):
            return folder
    raise OSError(errno.EAGAIN, f"{name} exists and vanishes by turns", name)


def _read(store: Store, name: str, setting: str) -> bytes | None:
    try:
        stat = store.stat(name)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise InvalidSettings(_refusal(setting, name, "it is not a regular file")) from error
    if stat is None:
        return None
    if stat.size > _BYTES_MAX:
        raise InvalidSettings(_refusal(setting, name, f"{MANIFEST_NAME} has {stat.size} bytes"))
    buffer = np.zeros(stat.size, np.uint8)
    read = store.read(name, 0, [buffer])
    return None if read is None else bytes(buffer[: read.filled_bytes])


def _compare(wanted: SpaceManifest, raw: bytes, name: str, setting: str) -> None:
    key_file = f"{setting.partition('.')[0]}.key_file"
    try:
        found = parse_manifest(raw)
    except InvalidSettings as error:
        raise InvalidSettings(_refusal(setting, name, str(error))) from error
    if differing := wanted.space.differing(found.space):
        raise InvalidSettings(_refusal(setting, name, "; ".join(differing)))
    if found.algorithm != wanted.algorithm:
        raise InvalidSettings(
            f"{key_file}: the blocks below {name} use checksum algorithm {found.algorithm}, "
            f"these settings {wanted.algorithm} (1: no secret, 2: a secret); give every engine "
            f"of the store the same {key_file}, or none, or name another {setting}"
        )
    if found.witness != wanted.witness:
        raise InvalidSettings(
            f"{key_file}: the blocks below {name} were written with another secret; give "
            f"every engine of the store the same file, or name another {setting}"
        )


def _refusal(setting: str, name: str, reason: str) -> str:
    return (
        f"{setting}: {name} does not fit this engine ({reason}); name another place, or "
        "remove this one if it is not in use"
    )
