from kvtier.router.learn.events import MessageOrder, MessageSequence


def taken(*messages: tuple[int, float]) -> MessageSequence:
    sequence = MessageSequence()
    for number, sent_s in messages:
        sequence.advance(number, sent_s)
    return sequence


def test_expected_number_is_next() -> None:
    assert MessageSequence().classify(0, 5.0) is MessageOrder.NEXT
    assert taken((0, 5.0)).classify(1, 5.0) is MessageOrder.NEXT


def test_skipped_number_is_gap_also_at_first() -> None:
    assert MessageSequence().classify(3, 5.0) is MessageOrder.GAP
    assert taken((0, 5.0)).classify(2, 6.0) is MessageOrder.GAP


def test_low_number_is_repeated_or_restarted() -> None:
    sequence = taken((0, 5.0), (1, 6.0), (2, 7.0))
    assert sequence.classify(1, 6.0) is MessageOrder.REPEATED
    assert sequence.classify(2, 7.0) is MessageOrder.REPEATED
    assert sequence.classify(0, 7.5) is MessageOrder.RESTARTED
    assert sequence.classify(2, float("nan")) is MessageOrder.REPEATED


def test_message_without_time_is_no_evidence_of_restart() -> None:
    sequence = taken((5, 100.0))
    sequence.advance(6, None)
    assert sequence.classify(7, 102.0) is MessageOrder.NEXT
    assert sequence.classify(5, 100.0) is MessageOrder.REPEATED
    assert sequence.classify(2, None) is MessageOrder.REPEATED
    assert sequence.classify(0, 101.0) is MessageOrder.RESTARTED


def test_reset_sequence_starts_at_zero() -> None:
    sequence = taken((7, 5.0))
    sequence.reset()
    assert sequence.classify(0, 1.0) is MessageOrder.NEXT
