"""Segments whose header fails: found by reading each header, moved aside where asked for.

Why: readers quarantine what they trip over; what nobody reads keeps its place until somebody
looks. Costs a read of a page for each file, so it is done on request. A tree without a manifest,
or whose checksums need a secret that was not given, is not judged.
"""

import logging

import msgspec

from kvtier.blocks.checksum import Checksum, checksum_for
from kvtier.blocks.key import BlockKey
from kvtier.errors import Corrupt, InvalidSettings
from kvtier.evictor.layouts import Tree
from kvtier.evictor.reading import read_small
from kvtier.evictor.work import Work
from kvtier.tiers.shared.format import PAGE_BYTES, MoreNeeded, decode
from kvtier.tiers.shared.headers import Headers, aligned_buffer
from kvtier.tiers.shared.manifest import FORMAT, MANIFEST_NAME, manifest_of, parse
from kvtier.tiers.shared.store import Store

_log = logging.getLogger(__name__)

_MANIFEST_BYTES_MAX = 1 << 20


class _Versioned(msgspec.Struct, frozen=True):
    format: int


def refusal(store: Store, tree: Tree) -> str | None:
    """Why a tree must not be touched: its manifest is of a format this program does not know.

    A manifest that is missing or damaged is no reason: names say what may be evicted.
    """
    if tree.is_foreign:
        return None
    read = read_small(store, f"{tree.name}/{MANIFEST_NAME}", _MANIFEST_BYTES_MAX)
    if read is None:
        return None
    try:
        found = msgspec.json.decode(read[0], type=_Versioned).format
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if found == FORMAT:
        return None
    return f"{tree.name}/{MANIFEST_NAME} is of format {found}; this kvtier knows {FORMAT}"


class HeaderCheck:
    """Of one tree, in one pass."""

    def __init__(self, work: Work, tree: Tree) -> None:
        self._work = work
        self._headers = None if tree.is_foreign else _headers(work, tree)

    def passes(self, shard: str, key: bytes, name: str) -> bool:
        """Whether the file stays where it is; one that was moved aside does not. One read."""
        if self._headers is None:
            return True
        headers, digest = self._headers
        try:
            reason = self._reason(headers, digest, BlockKey(key), name)
        except OSError as error:
            self._work.refused(f"read the header of {name}", error)
            return True
        if reason is None:
            return True
        self._work.report.note_broken(name, reason)
        if not self._work.options.sweep_broken:
            return True
        self._work.keep(shard)
        if not self._work.options.dry_run:
            try:
                headers.quarantine(BlockKey(key), reason)
            except OSError as error:
                self._work.refused(f"move {name} aside", error)
                return True
        self._work.report.freed["broken"].add(0)
        return False

    def _reason(self, headers: Headers, digest: bytes, key: BlockKey, name: str) -> str | None:
        size = PAGE_BYTES
        while True:
            buffer = aligned_buffer(size)
            read = self._work.store.read(name, 0, [buffer])
            if read is None:
                return None
            try:
                decode(
                    buffer[: read.filled_bytes].tobytes(),
                    checksum=headers.checksum,
                    space_digest=digest,
                    block_bytes=headers.block_bytes,
                    file_bytes=read.stat.size,
                    first=key,
                )
            except Corrupt as error:
                return str(error)
            except MoreNeeded as more:
                if more.header_bytes <= size:
                    return "it ends within its header"
                size = more.header_bytes
            else:
                return None


def _headers(work: Work, tree: Tree) -> tuple[Headers, bytes] | None:
    """How segments of a tree are verified, by its manifest."""
    read = read_small(work.store, f"{tree.name}/{MANIFEST_NAME}", _MANIFEST_BYTES_MAX)
    if read is None:
        return None
    try:
        manifest = parse(read[0])
        checksum: Checksum = checksum_for(work.options.key_file)
    except InvalidSettings as error:
        _log.warning("headers of %s are not checked: %s", tree.name, error)
        return None
    if manifest_of(manifest.space, checksum).witness != manifest.witness:
        _log.warning("headers of %s are not checked: they need another --key-file", tree.name)
        return None
    digest = bytes.fromhex(manifest.space.digest)
    space = manifest.space
    return Headers(work.store, tree.name, checksum, digest, space.block_bytes), digest
