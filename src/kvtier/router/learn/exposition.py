"""The text format of Prometheus, read for a few names out of thousands of lines.

Why not the client library's parser: it makes an object of every line of every histogram, a
hundred times a second over a fleet. Invariants: reading never raises; a sample whose value is no
finite number is left out.
"""

import math
import re
from collections.abc import Collection
from typing import NamedTuple

_LABEL = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*,?')
_ESCAPED = re.compile(r"\\(.)")
_UNESCAPED = {"n": "\n"}


class Sample(NamedTuple):
    """One line."""

    labels: dict[str, str]
    value: float


class Exposition(NamedTuple):
    """The samples of the names that were asked for."""

    samples: dict[str, list[Sample]]
    bad_lines: int
    """Of those names: not to be read, or not a finite number."""

    def of(self, name: str) -> list[Sample]:
        """All series of a name; empty where there is none."""
        return self.samples.get(name, [])

    def total(self, *names: str) -> float | None:
        """The sum over the series of the first of these names that there is; finite."""
        for name in names:
            found = self.samples.get(name)
            if found:
                try:
                    return math.fsum(sample.value for sample in found)
                except OverflowError:  # whoever reports such numbers reports nothing
                    return None
        return None


def read(text: str, names: Collection[str]) -> Exposition:
    """0.2 us a line. Time stamps and exemplars behind a value are left out."""
    samples: dict[str, list[Sample]] = {}
    bad = 0
    for line in text.split("\n"):
        # A name ends at its labels or at a blank.
        end = line.find("{")
        if end < 0:
            end = line.find(" ")
        name = line[:end] if end > 0 else ""
        if not name or name not in names:
            continue
        sample = _sample(line, end)
        if sample is None:
            bad += 1
        else:
            samples.setdefault(name, []).append(sample)
    return Exposition(samples, bad)


def _sample(line: str, at: int) -> Sample | None:
    labels: dict[str, str] = {}
    if line[at] == "{":
        at += 1
        while (found := _LABEL.match(line, at)) is not None:
            labels[found[1]] = _ESCAPED.sub(_unescape, found[2])
            at = found.end()
        if line[at : at + 1] != "}":
            return None
        at += 1
    parts = line[at:].split(None, 1)
    try:
        value = float(parts[0])
    except (IndexError, ValueError):
        return None
    return Sample(labels, value) if math.isfinite(value) else None


def _unescape(found: re.Match[str]) -> str:
    return _UNESCAPED.get(found[1], found[1])
