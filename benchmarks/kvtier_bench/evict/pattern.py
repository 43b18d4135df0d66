"""The read pattern: a seeded Zipf distribution over the files of a tree.

An evictor is judged by the reads that follow. Reads before and after the eviction come from the
same distribution, so that past reads predict later ones.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from kvtier.clock import seeded

EXPONENT: Final = 1.0
HISTORY_S: Final = 24 * 3600.0
WINDOWS: Final = 240
"""The number of access journals in the history, one for each six minutes."""
READS_PER_FILE: Final = 2

Numbers = npt.NDArray[np.int64]


class History(NamedTuple):
    """The writes and reads of each file before the eviction, as ages in seconds."""

    written_age_s: npt.NDArray[np.float64]
    read_age_s: npt.NDArray[np.float64]
    """The age of the last read, or of the write if the file was never read."""
    windows: list["Window"]
    """The periods of the journals, oldest first."""


class Window(NamedTuple):
    """The files that were read in one period of the history, as one journal lists them."""

    age_s: float
    files: Numbers


class Pattern:
    """A random source of reads; the same seed gives the same reads."""

    def __init__(self, files: int, seed: int) -> None:
        self.files = files
        self._random = seeded(seed)
        weights = 1.0 / np.arange(1, files + 1) ** EXPONENT
        self._cumulative = np.cumsum(weights) / weights.sum()
        numbers = list(range(files))
        self._random.shuffle(numbers)
        self.by_popularity: Numbers = np.array(numbers, dtype=np.int64)
        """The numbers of the files, most popular first."""

    def draw(self, count: int) -> Numbers:
        """Return the files of the next `count` reads. Takes 0.3 us each."""
        ranks = np.searchsorted(self._cumulative, self._uniform(count))
        numbers: Numbers = self.by_popularity[np.minimum(ranks, self.files - 1)]
        return numbers

    def history(self, newest_age_s: float) -> History:
        """Return a history of HISTORY_S: writes in random order, and reads of written files.

        The last window ends `newest_age_s` seconds before now.
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
