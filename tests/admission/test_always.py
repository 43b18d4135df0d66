import pytest

from kvtier.admission.always import PLUGIN, Always
from kvtier.admission.base import AdmissionDecision, AdmissionPolicy
from kvtier.blocks.key import BlockKey
from kvtier.testing.admission import AdmissionContract


class TestAlwaysContract(AdmissionContract):
    offers_until_admitted = 1
    memory_bytes = 64 << 10

    def make_policy(self) -> AdmissionPolicy:
        return Always()

    @pytest.mark.slow
    def test_memory_is_bounded(self) -> None:
        super().test_memory_is_bounded()


def test_first_offer_is_admitted() -> None:
    assert PLUGIN().decide(BlockKey(b"a")) is AdmissionDecision.ADMIT
