"""Who is read how often, and when: a Zipf law over the files of a tree, seeded.

Why: whom an evictor should keep is decided by what is read next. Reads before and after it come
from the same law, so what readers told before says something about what they ask for later.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kvtier.clock import seeded

EXPONENT: Final = 1.0
HISTORY_S: Final = 24 * 3600.0
WINDOWS: Final = 240
"""Journals that tell of the history: one for each six minutes."""
READS_PER_FILE: Final = 2

Numbers = npt.NDArray[np.int64]


class History(NamedTuple):
    """What happened to each file before the evictor comes. Ages are seconds before that."""

    written_age_s: npt.NDArray[np.float64]
    read_age_s: npt.NDArray[np.float64]
    """Of the last read; that of the writing where nobody read it."""
    windows: list["Window"]
    """Oldest first."""


class Window(NamedTuple):
    """Which files were read in a part of the history, each once, as one journal tells it."""

    age_s: float
    files: Numbers


class Pattern:
    """Draws numbers of files; the same seed draws the same."""

    def __init__(self, files: int, seed: int) -> None:
        self.files = files
        self._random = seeded(seed)
        weights = 1.0 / np.arange(1, files + 1) ** EXPONENT
        self._cumulative = np.cumsum(weights) / weights.sum()
        numbers = list(range(files))
        self._random.shuffle(numbers)
        self.by_popularity: Numbers = np.array(numbers, dtype=np.int64)
        """Most read first."""

    def draw(self, count: int) -> Numbers:
        """The next `count` reads. 0.3 us each."""
        ranks = np.searchsorted(self._cumulative, self._uniform(count))
        numbers: Numbers = self.by_popularity[np.minimum(ranks, self.files - 1)]
        return numbers

    def history(self, newest_age_s: float) -> History:
        """Files written in random order over HISTORY_S, and reads of those already written.

        The last window ends `newest_age_s` before now.
        """
        width_s = HISTORY_S / WINDOWS
        written_age_s = newest_age_s + width_s * 11 + self._uniform(self.files) * HISTORY_S
        read_age_s = written_age_s.copy()
        windows = []
        for number in range(WINDOWS):
            age_s = newest_age_s + (WINDOWS - 1 - number) * width_s
            drawn = np.unique(self.draw(READS_PER_FILE * self.files // WINDOWS))
            drawn = drawn[written_age_s[drawn] > age_s + width_s]
            read_age_s[drawn] = age_s
            windows.append(Window(age_s, drawn))
        return History(written_age_s, read_age_s, windows)

    def _uniform(self, count: int) -> npt.NDArray[np.float64]:
        draw = self._random.random
        return np.fromiter((draw() for _ in range(count)), np.float64, count)
