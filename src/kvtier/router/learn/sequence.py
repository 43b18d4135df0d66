"""Whether a numbered message is the next, a repetition, one after a gap, or of another life.

Publishers number their messages from 0 and begin again when they restart. A number that is too
low is told from a repetition by the sender's clock: what came before is older than the last.

Invariant: a message is taken at most once, and after one that was missed only when the gap has
been seen to.
"""

import enum


class Verdict(enum.Enum):
    """What to do with a message."""

    NEXT = "next"
    REPEATED = "repeated"
    GAP = "gap"
    """Some are missing between the last one and this."""
    RESTARTED = "restarted"
    """The publisher began anew; what it told before is void."""


class Sequence:
    """Of one publisher."""

    def __init__(self) -> None:
        self.expected = 0
        """The number that comes next."""
        self.is_told = False
        """Whether something of it was applied, be it a part of one message."""
        self._sent_s = float("-inf")

    def judge(self, number: int, sent_s: float | None) -> Verdict:
        """Changes nothing: `take` it once it has been applied.

        `sent_s` None: when it was sent cannot be read, so that it proves no other life.
        """
        if number == self.expected:
            return Verdict.NEXT
        if number > self.expected:
            return Verdict.GAP
        is_later = sent_s is not None and sent_s > self._sent_s
        return Verdict.RESTARTED if is_later else Verdict.REPEATED

    def take(self, number: int, sent_s: float | None) -> None:
        """This one was applied."""
        self.expected = number + 1
        if sent_s is not None:
            self._sent_s = sent_s

    def restart(self) -> None:
        """Nothing that came before counts."""
        self.expected = 0
        self.is_told = False
        self._sent_s = float("-inf")
