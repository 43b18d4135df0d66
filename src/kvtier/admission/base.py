"""The contract of an admission policy, which decides whether a block may enter a tier.

On flash its purpose is to spend write cycles only on blocks that will be requested again.
"""

import enum
from typing import Protocol

from kvtier.blocks.key import BlockKey


class AdmissionDecision(enum.Enum):
    """The decision of an admission policy on one block."""

    ADMIT = "admit"
    REJECT = "reject"


class AdmissionPolicy(Protocol):
    """A rule that decides for each offered block whether it may enter the tier.

    Not thread-safe: the cache is the only caller. O(1); never blocks and never raises.
    """

    def decide(self, key: BlockKey) -> AdmissionDecision:
        """Decide on an offered block. The policy may record the offer."""
        ...
