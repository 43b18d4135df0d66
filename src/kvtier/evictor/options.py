"""The options of an evictor, and how they are parsed from flags.

An evictor with wrong bounds deletes the wrong files. Therefore every mistake is reported at the
start, as an error that names the flag and how to correct it. Invariant: of each pair of
watermarks the low one is below the high one, both have the same unit, and neither exceeds the
file system.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from kvtier import plugins
from kvtier.blocks.checksum import load_key
from kvtier.errors import InvalidSettings
from kvtier.evictor.budget import Bounds, Watermarks
from kvtier.evictor.filesystem import FileSystemUsage
from kvtier.evictor.layouts import tree_at
from kvtier.evictor.leases import LEASE_S
from kvtier.evictor.table import DEFAULT_POLICY
from kvtier.settings.sizes import approximate_size, parse_duration, parse_size

GRACE_S: Final = 60.0
ORPHAN_S: Final = 3600.0
SWEEP_S: Final = 3600.0
LOW_OF_HIGH: Final = 0.9
"""The low watermark as a part of the high one, if only the high one is given."""

_LEAST_BYTES: Final = 1 << 20
"""A number without a unit below this is taken for a mistake, not for bytes."""
_PERCENT = re.compile(r"\s*(\d{1,3}(?:\.\d{1,6})?)\s*%\s*")
_COUNT = re.compile(r"[1-9]\d{0,17}")


class EvictorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The checked options of an evictor."""

    bounds: Bounds = Bounds()
    of_filesystem: bool = False
    """Compare the byte watermarks with the use of the whole file system, also by other files."""
    quotas: Mapping[str, Bounds] = {}
    """Bounds of single trees, by the tree's name."""
    ttl_s: float | None = None
    """Remove blocks that were neither written nor read for this long, whatever the bounds are."""
    policy: str = DEFAULT_POLICY
    grace_s: float = GRACE_S
    """Keep blocks that were written or read within this time, whatever the bounds are."""
    orphan_s: float = ORPHAN_S
    """Age from which a temporary file counts as left by a dead writer."""
    sweep_s: float = SWEEP_S
    """Time between two sweeps of the files outside of the shards."""
    lease_s: float = LEASE_S
    files_per_second: float | None = None
    deletes_per_second: float | None = None
    check_headers: bool = False
    sweep_broken: bool = False
    delete_unknown: bool = False
    sweep_foreign_folders: bool = False
    """Also remove empty folders of other systems' trees, whose writers may not expect it."""
    key_file: Path | None = None
    dry_run: bool = False


class SizeOrShare(NamedTuple):
    """Either a size or a percentage of the file system."""

    size_bytes: int | None = None
    per_cent: float | None = None


def parse_bound(text: str, flag: str) -> SizeOrShare:
    """Parse `500GiB` or `85%`. Raises InvalidSettings naming `flag`."""
    if "%" not in text:
        return SizeOrShare(size_bytes=_size(text, flag))
    found = _PERCENT.fullmatch(text)
    per_cent = float(found[1]) if found else 0.0
    if not 0 < per_cent <= 100:
        raise InvalidSettings(
            f"{flag}: {text!r} is not a percentage of a file system; write a number between 0 "
            "and 100, for example 85%"
        )
    return SizeOrShare(per_cent=per_cent)


def byte_watermarks(
    high: str | None, low: str | None, filesystem: FileSystemUsage | None
) -> tuple[Watermarks, bool]:
    """Return the watermarks in bytes, and whether they apply to the whole file system (`85%`).

    `filesystem` is None for a bucket. Raises InvalidSettings.
    """
    if high is None:
        if low is not None:
            raise InvalidSettings("--low: --high is missing; give both, or only --high")
        return Watermarks(), False
    upper = parse_bound(high, "--high")
    lower = _scaled(upper) if low is None else parse_bound(low, "--low")
    if (upper.per_cent is None) != (lower.per_cent is None):
        raise InvalidSettings(
            f"--low: {low} and --high {high} have different units; give two sizes, or two "
            "percentages"
        )
    if upper.per_cent is None or lower.per_cent is None:
        watermarks = Watermarks(upper.size_bytes, lower.size_bytes)
        _check_fits(watermarks, "--high", filesystem)
    else:
        if filesystem is None:
            raise InvalidSettings(
                f"--high: {high} is a percentage of a file system, and a bucket has none; write "
                "a size, for example 500GiB"
            )
        total = filesystem.total_bytes
        watermarks = Watermarks(
            int(total * upper.per_cent / 100), int(total * lower.per_cent / 100)
        )
    _check_order(watermarks, "--low", f"{low}", f"{high}")
    return watermarks, upper.per_cent is not None


def inode_watermarks(
    high: str | None, low: str | None, filesystem: FileSystemUsage | None = None
) -> Watermarks:
    """Return the watermarks in files and folders. Raises InvalidSettings."""
    if high is None:
        if low is not None:
            raise InvalidSettings("--low-inodes: --high-inodes is missing; give both")
        return Watermarks()
    upper = _count(high, "--high-inodes")
    lower = int(upper * LOW_OF_HIGH) if low is None else _count(low, "--low-inodes")
    watermarks = Watermarks(upper, lower)
    _check_order(watermarks, "--low-inodes", f"{low}", high)
    if filesystem is not None and 0 < filesystem.total_inodes < upper:
        raise InvalidSettings(
            f"--high-inodes: {upper} is more than the file system has ({filesystem.total_inodes}), "
            "so it would fill up first; write a smaller number"
        )
    return watermarks


def quota_bounds(texts: Iterable[str], filesystem: FileSystemUsage | None) -> dict[str, Bounds]:
    """Parse `FOLDER=SIZE` texts into bounds by folder. Raises InvalidSettings."""
    quotas: dict[str, Bounds] = {}
    for text in texts:
        folder, equals, size = text.rpartition("=")
        if not equals or tree_at(folder) is None:
            raise InvalidSettings(
                f"--quota: {text!r} does not name a folder and a size; write a folder at the top "
                "of the store, for example Qwen3-8B-0123456789abcdef=200GiB"
            )
        if folder in quotas:
            raise InvalidSettings(f"--quota: {folder} has two quotas; keep one of them")
        high = _size(size, f"--quota {folder}")
        watermarks = Watermarks(high, int(high * LOW_OF_HIGH))
        _check_fits(watermarks, f"--quota {folder}", filesystem)
        quotas[folder] = Bounds(watermarks)
    return quotas


def _size(text: str, flag: str) -> int:
    """Parse a size, and reject small numbers without a unit.

    `--high 85` would mean 85 bytes and empty the store, although 85% or 85GiB was meant.
    """
    size_bytes = parse_size(text, flag)
    if text.strip().isdecimal() and size_bytes < _LEAST_BYTES:
        raise InvalidSettings(f"{flag}: {text} is {text} bytes; write {text}% or {text}GiB")
    return size_bytes


def _scaled(bound: SizeOrShare) -> SizeOrShare:
    if bound.size_bytes is not None:
        return SizeOrShare(size_bytes=int(bound.size_bytes * LOW_OF_HIGH))
    return SizeOrShare(per_cent=(bound.per_cent or 0.0) * LOW_OF_HIGH)


def _count(text: str, flag: str) -> int:
    if not _COUNT.fullmatch(text.strip()):
        raise InvalidSettings(
            f"{flag}: {text!r} is not a number of files; write for example 2000000"
        )
    return int(text)


def _check_order(watermarks: Watermarks, flag: str, low: str, high: str) -> None:
    if (
        watermarks.high is not None
        and watermarks.low is not None
        and watermarks.low >= watermarks.high
    ):
        raise InvalidSettings(
            f"{flag}: {low} is not below {flag.replace('low', 'high')} {high}; above the high "
            "watermark, files are deleted until the low one is reached, so swap them"
        )


def _check_fits(watermarks: Watermarks, flag: str, filesystem: FileSystemUsage | None) -> None:
    if filesystem is None or watermarks.high is None or watermarks.high <= filesystem.total_bytes:
        return
    raise InvalidSettings(
        f"{flag}: {approximate_size(watermarks.high)} is more than the file system has "
        f"({approximate_size(filesystem.total_bytes)}), so it would fill up first; write a "
        "smaller size"
    )


class EvictorFlags(msgspec.Struct, kw_only=True):
    """The values of the flags, unparsed; None for a flag that is not given."""

    path: str
    high: str | None = None
    low: str | None = None
    high_inodes: str | None = None
    low_inodes: str | None = None
    quotas: Sequence[str] = ()
    ttl: str | None = None
    grace: str = "60s"
    orphans: str = "1h"
    lease: str = "60s"
    sweep: str = "1h"
    policy: str = "lru"
    files_per_second: float | None = None
    deletes_per_second: float | None = None
    check_headers: bool = False
    sweep_broken: bool = False
    delete_unknown: bool = False
    sweep_foreign_folders: bool = False
    key_file: Path | None = None
    dry_run: bool = False


def read_options(flags: EvictorFlags, disk: FileSystemUsage | None) -> EvictorOptions:
    """Parse and check all flags. Raises InvalidSettings naming the flag and how to correct it.

    `disk` is the file system of the store, None for a bucket.
    """
    watermarks, of_filesystem = byte_watermarks(flags.high, flags.low, disk)
    inodes = inode_watermarks(flags.high_inodes, flags.low_inodes, disk)
    quotas = quota_bounds(flags.quotas, disk)
    ttl_s = None if flags.ttl is None else parse_duration(flags.ttl, "--ttl")
    if watermarks.high is None and inodes.high is None and not quotas and ttl_s is None:
        raise InvalidSettings(
            "--high: nothing bounds the store; give --high 500GiB, --high 85%, --high-inodes, "
            "--quota or --ttl"
        )
    grace_s = parse_duration(flags.grace, "--grace")
    if ttl_s is not None and ttl_s < grace_s:
        raise InvalidSettings(
            f"--ttl: {flags.ttl} is shorter than --grace {flags.grace}, which keeps the blocks; "
            "write a shorter --grace, or a longer --ttl"
        )
    lease_s = parse_duration(flags.lease, "--lease")
    if lease_s < 1:
        raise InvalidSettings(f"--lease: {flags.lease} is too short to renew it in time; write 60s")
    for flag, rate in (
        ("--files-per-second", flags.files_per_second),
        ("--max-delete-per-second", flags.deletes_per_second),
    ):
        if rate is not None and rate <= 0:
            raise InvalidSettings(
                f"{flag}: with {rate:g} a pass would never end; leave it out for no limit"
            )
    try:
        plugins.load("eviction", flags.policy)
    except InvalidSettings as error:
        raise InvalidSettings(f"--policy: {error}") from error
    if flags.key_file is not None:
        load_key(flags.key_file, "--key-file")
    return EvictorOptions(
        bounds=Bounds(watermarks, inodes),
        of_filesystem=of_filesystem,
        quotas=quotas,
        ttl_s=ttl_s,
        policy=flags.policy,
        grace_s=grace_s,
        orphan_s=parse_duration(flags.orphans, "--orphans"),
        sweep_s=parse_duration(flags.sweep, "--sweep"),
        lease_s=lease_s,
        files_per_second=flags.files_per_second,
        deletes_per_second=flags.deletes_per_second,
        check_headers=flags.check_headers or flags.sweep_broken,
        sweep_broken=flags.sweep_broken,
        delete_unknown=flags.delete_unknown,
        sweep_foreign_folders=flags.sweep_foreign_folders,
        key_file=flags.key_file,
        dry_run=flags.dry_run,
    )
