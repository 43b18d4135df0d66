from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.evictor.budget import Bounds, Watermarks
from kvtier.evictor.filesystem import FileSystemUsage
from kvtier.evictor.options import EvictorFlags, EvictorOptions, read_options
from tests.evictor.scenes import TREE

DISK = FileSystemUsage(1 << 40, 0)


def test_read_options_has_defaults() -> None:
    options = read_options(EvictorFlags(path="/x", high="100B", low="50B"), DISK)
    assert options == EvictorOptions(bounds=Bounds(Watermarks(100, 50)))


def test_read_options_reads_every_flag() -> None:
    flags = EvictorFlags(
        path="/x",
        high="50%",
        high_inodes="100",
        quotas=[f"{TREE}=1000B"],
        ttl="72h",
        grace="2m",
        orphans="2h",
        lease="30s",
        sweep="5m",
        policy="s3fifo",
        files_per_second=5.0,
        deletes_per_second=6.0,
        sweep_broken=True,
        delete_unknown=True,
        sweep_foreign_folders=True,
        dry_run=True,
    )
    assert read_options(flags, DISK) == EvictorOptions(
        bounds=Bounds(Watermarks(1 << 39, int((1 << 40) * 0.45)), Watermarks(100, 90)),
        of_filesystem=True,
        quotas={TREE: Bounds(Watermarks(1000, 900))},
        ttl_s=72 * 3600,
        grace_s=120,
        orphan_s=7200,
        lease_s=30,
        sweep_s=300,
        policy="s3fifo",
        files_per_second=5.0,
        deletes_per_second=6.0,
        check_headers=True,
        sweep_broken=True,
        delete_unknown=True,
        sweep_foreign_folders=True,
        dry_run=True,
    )


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({}, "--high: nothing bounds the store"),
        ({"ttl": "10s"}, "--ttl: 10s is shorter than --grace 60s"),
        ({"ttl": "old"}, "--ttl: 'old'"),
        ({"ttl": "1h", "grace": "x"}, "--grace: 'x'"),
        ({"ttl": "1h", "lease": "0.5s"}, "--lease: 0.5s is too short"),
        ({"ttl": "1h", "policy": "best"}, "--policy: no eviction called 'best'"),
        ({"ttl": "1h", "files_per_second": 0.0}, "--files-per-second: with 0"),
        ({"ttl": "1h", "deletes_per_second": -1.0}, "--max-delete-per-second: with -1"),
        ({"ttl": "1h", "key_file": Path("/nowhere")}, "/nowhere cannot be read"),
    ],
)
def test_read_options_rejects_invalid_values(flags: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        read_options(EvictorFlags(path="/x", **flags), DISK)  # type: ignore[arg-type]
    assert named in str(caught.value)
