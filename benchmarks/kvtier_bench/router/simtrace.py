"""The trace of the simulated fleet: sessions of several turns, each turn longer than the last.

A prompt is a row of segments: the system prompt that many sessions share, then for each turn
what was asked and answered before. What a replica holds is a number of leading segments.
Seeded: the same seed makes the same trace.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from kvtier.clock import seeded
from kvtier.index.fleet.prompt import Numbers

_VOCABULARY: Final = np.uint32(128_000)

Segment = tuple[int, ...]
"""Its name: (group,) of a system prompt, (group, session, turn) of a turn."""


class TraceShape(NamedTuple):
    """Of a trace."""

    sessions: int = 1200
    groups: int = 60
    """System prompts; the first are the most frequent."""
    system_tokens: int = 4000
    first_tokens: tuple[int, int] = (2000, 14_000)
    """What a session begins with, from and to: a document, mostly."""
    turn_tokens: tuple[int, int] = (100, 600)
    answer_tokens: tuple[int, int] = (50, 300)
    turns: tuple[int, int] = (3, 9)
    arrivals_s: float = 80.0
    """In which all sessions begin."""
    think_s: float = 20.0
    """Mean, between an answer and the next turn."""


class SessionTurn(NamedTuple):
    """One request of a session."""

    segments: tuple[Segment, ...]
    """Of its prompt."""
    sizes: tuple[int, ...]
    """Of the segments, in tokens."""
    answer_tokens: int
    pause_s: float
    """After the answer, to the next turn."""

    @property
    def tokens(self) -> int:
        """Of the prompt."""
        return sum(self.sizes)


class SimulatedSession(NamedTuple):
    """Turns, each asked once the one before has been answered."""

    number: int
    begins_s: float
    turns: list[SessionTurn]


def make_sessions(shape: TraceShape, seed: int) -> Iterator[SimulatedSession]:
    """All of them, in no order of time."""
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
            # The next prompt holds this answer as well, and the device held it as it was made.
            sizes[-1] += answered
        yield SimulatedSession(number, random.uniform(0, shape.arrivals_s), turns)


class Words:
    """Token ids of segments, made once and kept: prompts that share a segment share its ids."""

    def __init__(self) -> None:
        self._of: dict[Segment, Numbers] = {}

    def prompt(self, turn: SessionTurn) -> Numbers:
        """The whole prompt's."""
        return np.concatenate(
            [
                self._segment(name, size)
                for name, size in zip(turn.segments, turn.sizes, strict=True)
            ]
        )

    def _segment(self, name: Segment, size: int) -> Numbers:
        known = self._of.get(name)
        if known is None or len(known) < size:
            # A segment that grew by its answer begins as it did.
            words = seeded(_number(name)).randbytes(4 * size)
            known = np.frombuffer(words, dtype="<u4") % _VOCABULARY
            self._of[name] = known
        return known[:size]


def _number(name: Segment) -> int:
    """Another for each name; turns and sessions are fewer than a million."""
    number = len(name)
    for part in name:
        number = number * 1_000_003 + part
    return number
