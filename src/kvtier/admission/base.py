"""The contract of an admission policy: which blocks may enter a tier at all.

Its purpose on flash is to spend write cycles only on blocks that will be asked for again.
"""

import enum
from typing import Protocol

from kvtier.blocks.key import BlockKey


class AdmissionDecision(enum.Enum):
    """The answer of a policy."""

    ADMIT = "admit"
    REJECT = "reject"


class AdmissionPolicy(Protocol):
    """Not thread-safe: one caller, the cache. O(1), never blocks, never raises."""

    def decide(self, key: BlockKey) -> AdmissionDecision:
        """Whether the offered block may enter; the offer itself may be remembered."""
        ...
