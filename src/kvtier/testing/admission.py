"""The contract suite for admission policies.

    class TestMine(AdmissionContract):
        def make_policy(self) -> AdmissionPolicy:
            return Mine()

Needs pytest. No test depends on time.
"""

import tracemalloc
from abc import ABC, abstractmethod
from typing import ClassVar

from kvtier.admission.base import AdmissionDecision, AdmissionPolicy
from kvtier.blocks.key import BlockKey


class AdmissionContract(ABC):
    """The tests of an admission policy: subclass it, implement `make_policy`, and run pytest."""

    offers_until_admitted: ClassVar[int] = 10
    """A block that is offered this often in a row is admitted at least once."""

    memory_bytes: ClassVar[int] = 64 << 20
    """The most memory that the policy uses, however many blocks are offered."""

    @abstractmethod
    def make_policy(self) -> AdmissionPolicy:
        """Return a new policy that has seen no block."""

    def test_decision_is_admit_or_reject(self) -> None:
        """The key may be short, long, or of any group."""
        policy = self.make_policy()
        for key in (b"\0", bytes(12), bytes(36), b"\xff" * 68):
            assert isinstance(policy.decide(BlockKey(key)), AdmissionDecision)

    def test_same_offers_give_same_decisions(self) -> None:
        """Two policies that saw the same offers agree, so that a seeded simulation repeats."""
        offers = [BlockKey((number * 7 % 50).to_bytes(36, "big")) for number in range(500)]
        one, other = self.make_policy(), self.make_policy()
        assert [one.decide(key) for key in offers] == [other.decide(key) for key in offers]

    def test_block_offered_repeatedly_is_admitted(self) -> None:
        """No block is rejected forever."""
        policy = self.make_policy()
        for number in range(100):
            key = BlockKey(number.to_bytes(36, "big"))
            decisions = {policy.decide(key) for _ in range(self.offers_until_admitted)}
            assert AdmissionDecision.ADMIT in decisions

    def test_memory_is_bounded(self) -> None:
        """A scan of 200,000 blocks uses at most `memory_bytes`."""
        policy = self.make_policy()
        tracemalloc.start()
        try:
            for number in range(200_000):
                policy.decide(BlockKey(number.to_bytes(36, "big")))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak <= self.memory_bytes
