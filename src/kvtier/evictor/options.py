"""What an evictor was asked to do."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from kvtier.evictor.budget import Marks
from kvtier.evictor.leases import LEASE_S
from kvtier.evictor.ranking import DEFAULT_POLICY

GRACE_S: Final = 60.0
ORPHAN_S: Final = 3600.0
SWEEP_S: Final = 3600.0


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Checked already; see `bounds` for what people write."""

    marks: Marks = Marks()
    of_filesystem: bool = False
    """The byte marks hold against all that is used of the file system, whoever uses it."""
    quotas: Mapping[str, Marks] = {}
    """By tree."""
    ttl_s: float | None = None
    """What nobody wrote or read for so long goes, bound or not."""
    policy: str = DEFAULT_POLICY
    grace_s: float = GRACE_S
    """What was written or read within it stays, bound or not."""
    orphan_s: float = ORPHAN_S
    """Temporary files are a dead writer's after it."""
    sweep_s: float = SWEEP_S
    """How often what lies outside of the shards is looked through."""
    lease_s: float = LEASE_S
    files_per_second: float | None = None
    deletes_per_second: float | None = None
    check_headers: bool = False
    sweep_broken: bool = False
    delete_unknown: bool = False
    sweep_foreign_folders: bool = False
    """Remove empty folders of other systems' trees too, whose writers may not expect it."""
    key_file: Path | None = None
    dry_run: bool = False
