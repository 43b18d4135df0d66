"""What a conversion did: the same for people and for programs.

Invariants: every file that was looked at is in exactly one count; of those refused the first
REFUSALS_KEPT are named. Fields of format 1 are only ever added.
"""

from typing import Final

import msgspec

FORMAT: Final = 1
REFUSALS_KEPT: Final = 1_000

REFUSALS: Final = {
    "short": "shorter than its block",
    "long": "longer than its block",
    "missing": "the file of another rank is missing, or went while it was read",
    "irregular": "a link, pipe, socket, device or folder",
    "unreadable": "the file system refuses it",
    "unknown": "named as no block is, or of another group",
    "damaged": "a segment whose header or checksums are wrong",
    "occupied": "something else has the name where the block should go",
}
"""Why a file was not converted."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """One file that was not converted."""

    file: str
    kind: str
    """Of REFUSALS."""
    reason: str


class Conversion(msgspec.Struct, kw_only=True):
    """Of one run."""

    format: int = FORMAT
    source: str
    destination: str
    to: str
    """`kvtier` or `vllm-fs`."""
    tree: str
    system: str
    space: str
    """Name of the key space."""
    unproven: list[str]
    """Fields of the key space that the tree does not tell, so that nobody can check them."""
    dry_run: bool = False
    complete: bool = False
    """Whether all of the source was looked at; False where it was interrupted or limited."""
    limited: bool = False
    converted: int = 0
    """Blocks; in a dry run, those that would be."""
    bytes: int = 0
    """Of them, without padding."""
    existed: int = 0
    """Blocks that were there already."""
    refused: dict[str, int] = {}
    """Files, by kind."""
    refusals: list[Refusal] = []

    @property
    def refused_files(self) -> int:
        """Of all kinds."""
        return sum(self.refused.values())

    def refuse(self, file: str, kind: str, reason: str = "") -> None:
        """Count it, and name it while there is room."""
        self.refused[kind] = self.refused.get(kind, 0) + 1
        if len(self.refusals) < REFUSALS_KEPT:
            why = reason or REFUSALS[kind]
            self.refusals.append(Refusal(file=file, kind=kind, reason=why))
