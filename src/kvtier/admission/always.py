"""An admission policy that admits every block: the right choice for RAM.

It keeps no state and costs nothing.
"""

from kvtier.admission.base import AdmissionDecision
from kvtier.blocks.key import BlockKey


class Always:
    """An `AdmissionPolicy` that admits every block."""

    __slots__ = ()

    def decide(self, key: BlockKey) -> AdmissionDecision:
        """Return ADMIT."""
        return AdmissionDecision.ADMIT


PLUGIN = Always
