"""Admit every block: the no-op of this layer, and the right choice for RAM.

Costs nothing and remembers nothing.
"""

from kvtier.admission.base import AdmissionDecision
from kvtier.blocks.key import BlockKey


class Always:
    """An `AdmissionPolicy` that never refuses."""

    __slots__ = ()

    def decide(self, key: BlockKey) -> AdmissionDecision:
        """ADMIT."""
        return AdmissionDecision.ADMIT


PLUGIN = Always
