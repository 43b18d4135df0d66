"""What an evictor refuses to start on: a place, or a quota, that cannot be what was meant.

Why: who names the wrong folder finds out before anything is removed, and who misspells a quota
before a store outgrows it.
"""

import logging
from collections.abc import Mapping, Sequence

from kvtier.errors import InvalidSettings
from kvtier.evictor.layouts import Tree, is_inside_a_tree
from kvtier.evictor.options import Options

_log = logging.getLogger(__name__)


def check_place(
    found: Sequence[str],
    trees: Sequence[Tree],
    refused: Mapping[str, str],
    mounts: Sequence[str],
    options: Options,
) -> None:
    """`found` is what lies at the top of a store, but for what evictors keep there.

    `trees` are those to work on; `refused` those that must not be touched, with the reason.
    Raises InvalidSettings naming the flag and the fix.
    """
    for reason in refused.values():
        raise InvalidSettings(f"PATH: {reason}, or move the folder away")
    if not trees and not mounts:
        _check_unknown(found, options)
    names = {tree.name for tree in trees}
    for mount in mounts:
        _log.warning("left alone, as another file system is mounted there: %s", mount)
        names.add(mount.partition("/")[0])
    for folder in sorted(set(options.quotas) - names):
        there = ", ".join(sorted(names)) or "none, as no engine has written yet"
        raise InvalidSettings(
            f"--quota: there is no folder {folder} in the store; name one of those at its "
            f"top: {there}"
        )


def _check_unknown(found: Sequence[str], options: Options) -> None:
    """Of a place in which no tree is known."""
    if inside := next((top for top in found if is_inside_a_tree(top)), None):
        raise InvalidSettings(
            f"PATH: {inside} at its top is of one key space; name the folder above it"
        )
    if options.delete_unknown and found:
        raise InvalidSettings(
            "--delete-unknown: nothing here is of a known layout, so all of it would go; name "
            "the folder that engines share"
        )
