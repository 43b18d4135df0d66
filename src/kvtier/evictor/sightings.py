"""What is no block: orphans are removed, strangers' files reported, the rest left alone.

Invariants: what was touched within the orphan time stays, by the store's clock, since somebody
may still be writing it; an unknown file is removed only where that was asked for.
"""

from kvtier.evictor.layouts import Kind
from kvtier.evictor.work import Work
from kvtier.tiers.shared.folder import FileUsage


def settle(work: Work, shard: str, found: FileUsage, kind: Kind) -> bool:
    """Do with a file what its kind asks for; True where it is gone, or would be."""
    is_old = found.modified_s < work.now_s - work.options.orphan_s
    if kind is Kind.TEMPORARY and is_old:
        return work.remove(shard, found.name, found.physical_bytes, "orphan")
    if kind is Kind.UNKNOWN:
        work.report.note_unknown(found.name, found.physical_bytes)
        if work.options.delete_unknown and is_old:
            return work.remove(shard, found.name, found.physical_bytes, "unknown")
    return False
