import pytest

from kvtier.admission.base import AdmissionDecision, AdmissionPolicy
from kvtier.admission.second_touch import PLUGIN, SecondTouch
from kvtier.blocks.key import BlockKey
from kvtier.testing.admission import AdmissionContract


class TestSecondTouchContract(AdmissionContract):
    offers_until_admitted = 2
    memory_bytes = 2 << 20

    def make_policy(self) -> AdmissionPolicy:
        return SecondTouch(remembered_blocks=10_000)

    @pytest.mark.slow
    def test_memory_is_bounded(self) -> None:
        super().test_memory_is_bounded()


def key(number: int, group: int = 0) -> BlockKey:
    return BlockKey(number.to_bytes(32, "big") + group.to_bytes(4, "big"))


def test_second_offer_is_admitted_and_third_rejected() -> None:
    policy = PLUGIN()
    offers = [policy.decide(key(1)) for _ in range(4)]
    assert offers == [
        AdmissionDecision.REJECT,
        AdmissionDecision.ADMIT,
        AdmissionDecision.REJECT,
        AdmissionDecision.ADMIT,
    ]


def test_admission_from_older_generation_removes_record() -> None:
    policy = SecondTouch(remembered_blocks=4)
    for number in (1, 2, 3):
        policy.decide(key(number))
    assert [policy.decide(key(1)) for _ in range(2)] == [
        AdmissionDecision.ADMIT,
        AdmissionDecision.REJECT,
    ]


def test_groups_of_one_block_are_recorded_separately() -> None:
    policy = SecondTouch()
    assert policy.decide(key(1, group=0)) is AdmissionDecision.REJECT
    assert policy.decide(key(1, group=1)) is AdmissionDecision.REJECT


@pytest.mark.parametrize(
    ("offers_between", "decision"), [(49, AdmissionDecision.ADMIT), (100, AdmissionDecision.REJECT)]
)
def test_offer_is_remembered_for_half_and_forgotten_after_all_remembered_blocks(
    offers_between: int, decision: AdmissionDecision
) -> None:
    for lead in range(50):
        policy = SecondTouch(remembered_blocks=100)
        for number in range(lead):
            policy.decide(key(5_000 + number))
        policy.decide(key(1))
        for number in range(offers_between):
            policy.decide(key(1_000 + number))
        assert policy.decide(key(1)) is decision


def test_remembered_blocks_below_two_is_rejected() -> None:
    with pytest.raises(ValueError, match="remembered_blocks is 1"):
        SecondTouch(remembered_blocks=1)
