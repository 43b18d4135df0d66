from kvtier.router.learn.events import MessageOrder, MessageSequence


def taken(*messages: tuple[int, float]) -> MessageSequence:
    sequence = MessageSequence()
    for number, sent_s in messages:
        sequence.advance(number, sent_s)
    return sequence


def test_the_next_message_is_the_next() -> None:
    assert MessageSequence().classify(0, 5.0) is MessageOrder.NEXT
    assert taken((0, 5.0)).classify(1, 5.0) is MessageOrder.NEXT


def test_a_number_that_was_skipped_is_a_gap_also_at_first() -> None:
    assert MessageSequence().classify(3, 5.0) is MessageOrder.GAP
    assert taken((0, 5.0)).classify(2, 6.0) is MessageOrder.GAP


def test_a_low_number_is_a_repetition_or_another_life() -> None:
    sequence = taken((0, 5.0), (1, 6.0), (2, 7.0))
    assert sequence.classify(1, 6.0) is MessageOrder.REPEATED
    assert sequence.classify(2, 7.0) is MessageOrder.REPEATED
    assert sequence.classify(0, 7.5) is MessageOrder.RESTARTED
    assert sequence.classify(2, float("nan")) is MessageOrder.REPEATED


def test_a_message_that_cannot_be_read_proves_nothing_about_time() -> None:
    sequence = taken((5, 100.0))
    sequence.advance(6, None)
    assert sequence.classify(7, 102.0) is MessageOrder.NEXT
    assert sequence.classify(5, 100.0) is MessageOrder.REPEATED
    assert sequence.classify(2, None) is MessageOrder.REPEATED
    assert sequence.classify(0, 101.0) is MessageOrder.RESTARTED


def test_after_a_restart_it_begins_anew() -> None:
    sequence = taken((7, 5.0))
    sequence.reset()
    assert sequence.classify(0, 1.0) is MessageOrder.NEXT
