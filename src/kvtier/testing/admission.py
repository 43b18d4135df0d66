"""The suite that every admission policy passes.

    class TestMine(AdmissionContract):
        def make_policy(self) -> AdmissionPolicy:
            return Mine()

Needs pytest. No test is timed.
"""

import tracemalloc
from abc import ABC, abstractmethod
from typing import ClassVar

from kvtier.admission.base import AdmissionDecision, AdmissionPolicy
from kvtier.blocks.key import BlockKey


class AdmissionContract(ABC):
    """Subclass it, implement `make_policy`, and pytest runs the suite."""

    offers_until_admitted: ClassVar[int] = 10
    """A block offered this often, back to back, has been admitted at least once."""

    memory_bytes: ClassVar[int] = 64 << 20
    """The policy never holds more, however many blocks are offered."""

    @abstractmethod
    def make_policy(self) -> AdmissionPolicy:
        """A new policy that has seen nothing."""

    def test_decision_is_admit_or_reject(self) -> None:
        """Whatever the key: short, long, of any group."""
        policy = self.make_policy()
        for key in (b"\0", bytes(12), bytes(36), b"\xff" * 68):
            assert isinstance(policy.decide(BlockKey(key)), AdmissionDecision)

    def test_same_offers_give_same_decisions(self) -> None:
        """Two policies that saw the same agree: a seeded simulation repeats."""
        offers = [BlockKey((number * 7 % 50).to_bytes(36, "big")) for number in range(500)]
        one, other = self.make_policy(), self.make_policy()
        assert [one.decide(key) for key in offers] == [other.decide(key) for key in offers]

    def test_block_offered_again_and_again_is_admitted(self) -> None:
        """No block is locked out for ever."""
        policy = self.make_policy()
        for number in range(100):
            key = BlockKey(number.to_bytes(36, "big"))
            decisions = {policy.decide(key) for _ in range(self.offers_until_admitted)}
            assert AdmissionDecision.ADMIT in decisions

    def test_memory_is_bounded(self) -> None:
        """A scan of 200,000 blocks leaves no more than `memory_bytes`."""
        policy = self.make_policy()
        tracemalloc.start()
        try:
            for number in range(200_000):
                policy.decide(BlockKey(number.to_bytes(36, "big")))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak <= self.memory_bytes
