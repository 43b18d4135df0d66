"""How fast a replica computes or loads, from counters that add up the seconds of its requests.

An engine that works on several requests at once, or decodes others in the same steps, counts the
same second for each of them: tokens over seconds is then less than what it does, and never more.
So a rate is the best that was measured lately, not a mean: it rises at once and falls slowly.
Where requests overlap all the time even the best is too low; `PrefillRate` therefore also holds
the seconds against the time that has passed, of which an engine cannot have used more.

Invariants: a rate is 0 until something was measured, and always a number; counters that do not
move, go back, move one at a time, or are no counts change nothing.
"""

from typing import Final, NamedTuple

HALF_S: Final = 300.0
"""After so long, a rate has come half the way down to what is measured now."""
WINDOW_S: Final = 10.0
"""Time that has to pass before it is held against the seconds of requests."""
_WINDOW_LATENCIES: Final = 8
"""A window is at least so many times a request's own time, as prefills counted in it may have
been before it."""
_KEPT: Final = 0.8
"""Share of what was measured before that counts beside the newest interval: counters are not
written at one moment, and a single odd interval would stay as the best."""
_FASTEST: Final = 1e9
"""Tokens a second that nobody computes or loads: whoever reports so reports nothing."""
_COUNTED_MAX: Final = float(1 << 53)
"""Where a float can count no further; nobody computes so many tokens, or works so long."""
_PREFILL_MIN: Final = 256
"""Tokens a request: who computes less, because it found the rest, measures what a step costs."""


class PeakRate:
    """Something a second, from two counters; the best of late."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None
        self._amount = self._seconds = 0.0
        self._best = 0.0
        self._updated_s = 0.0

    def update(
        self, amount: float | None, seconds: float | None, now_s: float, *, least: float = 0.0
    ) -> float:
        """Counters as they stand now; 0 while nothing has been measured.

        An interval of less than `least` says nothing.
        """
        if amount is not None and seconds is not None:
            if _believed(amount) is None or _believed(seconds) is None:
                self._last = None  # the next that can be believed begin an interval
                return self._best
            last = self._last or (amount, seconds)
            more, longer = amount - last[0], seconds - last[1]
            if longer > 0 and max(least, 1.0) <= more <= longer * _FASTEST:
                self._amount = self._amount * _KEPT + more
                self._seconds = self._seconds * _KEPT + longer
                self.record(self._amount / self._seconds, now_s)
            # Replicas do not report both at the same moment: an interval lasts until both have
            # moved. Less than before: the replica has restarted, this interval says nothing.
            if self._last is None or more * longer > 0 or min(more, longer) < 0:
                self._last = (amount, seconds)
        return self._best

    def record(self, rate: float, now_s: float) -> None:
        """A rate that the replica has had, or exceeded. One that nobody can have is none."""
        if not 0 <= rate <= _FASTEST:
            return
        elapsed_s = min(max(0.0, now_s - self._updated_s), HALF_S)
        fallen = self._best + (rate - self._best) * (1 - 0.5 ** (elapsed_s / HALF_S))
        self._best = max(rate, fallen)
        self._updated_s = now_s


class Prefills(NamedTuple):
    """Counters of finished requests; None: not told."""

    tokens: float | None
    """Computed, not found in a cache."""
    requests: float | None
    seconds: float | None
    """From being scheduled to the first token, summed over requests."""
    latency_s: float | None
    """From arrival to the end, summed over requests."""


class PrefillRate:
    """Tokens that a replica computes in a second of prefill.

    What is measured is at most what the replica can do: also where it was never busy for a
    window, and where steps with decoding in them are all that there is. Short prefills, of less
    than 256 tokens a request on average, are left out.
    """

    def __init__(self) -> None:
        self._rate = PeakRate()
        self._requests = 0.0
        self._window: tuple[float, Prefills] | None = None

    def update(self, seen: Prefills, now_s: float) -> float:
        """Counters as they stand now; tokens a second, 0 while nothing has been measured."""
        believed = Prefills(*map(_believed, seen))
        count = self._requests if believed.requests is None else believed.requests
        requests, self._requests = max(0.0, count - self._requests), count
        self._hold_against_time(believed, now_s)
        return self._rate.update(seen.tokens, seen.seconds, now_s, least=requests * _PREFILL_MIN)

    def _hold_against_time(self, seen: Prefills, now_s: float) -> None:
        """At the end of a window: what was computed in it, over its length at most."""
        if self._window is None or _fell(self._window[1], seen):
            self._window = (now_s, seen)
            return
        began_s, first = self._window
        tokens, requests, seconds, latency_s = _since(first, seen)
        each_s = latency_s / requests if requests > 0 else 0.0
        passed_s = now_s - began_s
        if passed_s < max(WINDOW_S, _WINDOW_LATENCIES * each_s):
            return
        self._window = (now_s, seen)
        busy_s = min(seconds, passed_s + 2 * each_s)
        if busy_s > 0 and latency_s > 0 and tokens >= max(1.0, requests * _PREFILL_MIN):
            self._rate.record(tokens / busy_s, now_s)


def _believed(counter: float | None) -> float | None:
    """None for what is no count, as for one that is not told."""
    return counter if counter is not None and 0 <= counter <= _COUNTED_MAX else None


def _since(first: Prefills, now: Prefills) -> list[float]:
    """How far each counter has come; one that is not told has not moved."""
    pairs = zip(first, now, strict=True)
    return [0.0 if a is None or b is None else b - a for a, b in pairs]


def _fell(first: Prefills, now: Prefills) -> bool:
    """Whether the replica has restarted, or began to tell more than before."""
    return min(_since(first, now)) < 0 or first.count(None) != now.count(None)
