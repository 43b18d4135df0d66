"""The trace of the simulation: sessions of several turns, whose prompts grow from turn to turn.

A prompt is a sequence of segments: the system prompt that many sessions share, then the questions
and answers of the session so far. The same seed gives the same trace.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from kvtier.clock import seeded
from kvtier.index.fleet.prompt import Numbers

_VOCABULARY: Final = np.uint32(128_000)

Segment = tuple[int, ...]
"""The name of a segment: (group,) for a system prompt, (group, session, turn) for a turn."""


class TraceShape(NamedTuple):
    """The parameters of a trace; pairs are ranges."""

    sessions: int = 1200
    groups: int = 60
    """The number of system prompts; the first are the most frequent."""
    system_tokens: int = 4000
    first_tokens: tuple[int, int] = (2000, 14_000)
    """The length of a session's first question, which mostly is a document."""
    turn_tokens: tuple[int, int] = (100, 600)
    answer_tokens: tuple[int, int] = (50, 300)
    turns: tuple[int, int] = (3, 9)
    arrivals_s: float = 80.0
    """The period in which all sessions begin."""
    think_s: float = 20.0
    """The mean time between an answer and the next turn."""


class SessionTurn(NamedTuple):
    """One request of a session."""

    segments: tuple[Segment, ...]
    """The segments of its prompt."""
    sizes: tuple[int, ...]
    """The lengths of the segments in tokens."""
    answer_tokens: int
    pause_s: float
    """The time from the answer to the next turn."""

    @property
    def tokens(self) -> int:
        """The length of the prompt in tokens."""
        return sum(self.sizes)


class SimulatedSession(NamedTuple):
    """A sequence of turns, each sent some time after the answer to the one before."""

    number: int
    begins_s: float
    turns: list[SessionTurn]


def make_sessions(shape: TraceShape, seed: int) -> Iterator[SimulatedSession]:
    """Yield the sessions of a trace, which are not ordered by time."""
    random = seeded(seed)
    weights = [1 / (1 + number) for number in range(shape.groups)]
    for number in range(shape.sessions):
        [group] = random.choices(range(shape.groups), weights)
        segments: list[Segment] = [(group,)]
        sizes = [shape.system_tokens]
        turns = []
        for turn in range(random.randint(*shape.turns)):
            asked = random.randint(*(shape.turn_tokens if turn else shape.first_tokens))
            answered = random.randint(*shape.answer_tokens)
            segments.append((group, number, turn))
            sizes.append(asked)
            pause_s = random.expovariate(1 / shape.think_s)
            turns.append(SessionTurn(tuple(segments), tuple(sizes), answered, pause_s))
            # The next prompt contains this answer too, whose blocks the device already has.
            sizes[-1] += answered
        yield SimulatedSession(number, random.uniform(0, shape.arrivals_s), turns)


class SegmentTokens:
    """The token ids of segments; prompts that share a segment share its ids."""

    def __init__(self) -> None:
        self._of: dict[Segment, Numbers] = {}

    def prompt(self, turn: SessionTurn) -> Numbers:
        """Return the token ids of a turn's whole prompt."""
        return np.concatenate(
            [
                self._segment(name, size)
                for name, size in zip(turn.segments, turn.sizes, strict=True)
            ]
        )

    def _segment(self, name: Segment, size: int) -> Numbers:
        known = self._of.get(name)
        if known is None or len(known) < size:
            # A segment that grows by its answer keeps its beginning.
            tokens = seeded(_number(name)).randbytes(4 * size)
            known = np.frombuffer(tokens, dtype="<u4") % _VOCABULARY
            self._of[name] = known
        return known[:size]


def _number(name: Segment) -> int:
    """Return a number unique to the name, given fewer than a million turns and sessions."""
    number = len(name)
    for part in name:
        number = number * 1_000_003 + part
    return number
