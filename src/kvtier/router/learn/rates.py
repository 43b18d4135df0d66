"""Rates at which a replica computes or loads tokens, from counters of its requests' seconds.

An engine that works on several requests at once, or decodes others in the same steps, counts the
same second for each of them, so tokens divided by seconds underestimates its speed and never
overestimates it. A rate is therefore the best recent measurement rather than a mean: it rises at
once and falls slowly. If requests overlap all the time, even the best is too low, so `PrefillRate`
also compares the seconds with the elapsed time, since the engine cannot have used more than that.

Invariants: a rate is 0 until something was measured, and always finite; counters that stand still,
decrease, change one without the other, or are implausible do not change it.
"""

from typing import Final, NamedTuple

HALF_S: Final = 300.0
"""The half-life of a rate's decay towards the current measurement."""
WINDOW_S: Final = 10.0
"""The shortest window over which seconds are compared with the elapsed time."""
_WINDOW_LATENCIES: Final = 8
"""A window lasts at least this many request latencies, because a prefill that is counted in it
may have happened before it began."""
_KEPT: Final = 0.8
"""The weight of earlier intervals relative to the newest. The counters are not updated at the same
moment, and without averaging a single odd interval would stay as the best."""
_FASTEST: Final = 1e9
"""Tokens per second above which a measurement is implausible and ignored."""
_COUNTED_MAX: Final = float(1 << 53)
"""The largest plausible counter: above it, a float cannot count in steps of one."""
_PREFILL_MIN: Final = 256
"""Tokens per request below which prefills measure the cost of a step, not the speed."""


class PeakRate:
    """An amount per second from two counters: the best recent measurement, which decays."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None
        self._amount = self._seconds = 0.0
        self._best = 0.0
        self._updated_s = 0.0

    def update(
        self, amount: float | None, seconds: float | None, now_s: float, *, least: float = 0.0
    ) -> float:
        """Update with the counters' current values and return the rate; 0 if not measured yet.

        An interval in which the amount rose by less than `least` is ignored.
        """
        if amount is not None and seconds is not None:
            if _plausible(amount) is None or _plausible(seconds) is None:
                self._last = None  # the next plausible values begin an interval
                return self._best
            last = self._last or (amount, seconds)
            more, longer = amount - last[0], seconds - last[1]
            if longer > 0 and max(least, 1.0) <= more <= longer * _FASTEST:
                self._amount = self._amount * _KEPT + more
                self._seconds = self._seconds * _KEPT + longer
                self.record(self._amount / self._seconds, now_s)
            # Replicas do not update both counters at the same moment, so an interval lasts until
            # both have changed. If one has decreased, the replica has restarted, and the interval
            # is ignored.
            if self._last is None or more * longer > 0 or min(more, longer) < 0:
                self._last = (amount, seconds)
        return self._best

    def record(self, rate: float, now_s: float) -> None:
        """Record a rate that the replica has reached or exceeded; ignore an implausible one."""
        if not 0 <= rate <= _FASTEST:
            return
        elapsed_s = min(max(0.0, now_s - self._updated_s), HALF_S)
        fallen = self._best + (rate - self._best) * (1 - 0.5 ** (elapsed_s / HALF_S))
        self._best = max(rate, fallen)
        self._updated_s = now_s


class Prefills(NamedTuple):
    """Counters of finished requests; None if the replica does not report one."""

    tokens: float | None
    """Prompt tokens that were computed rather than found in a cache."""
    requests: float | None
    seconds: float | None
    """Seconds from scheduling to the first token, summed over requests."""
    latency_s: float | None
    """Seconds from arrival to the end, summed over requests."""


class PrefillRate:
    """The tokens per second that a replica computes in prefill.

    The rate never exceeds what the replica is capable of, even if it was never busy for a whole
    window, or if all of its steps include decoding. Prefills of fewer than 256 tokens per request
    on average are ignored.
    """

    def __init__(self) -> None:
        self._rate = PeakRate()
        self._requests = 0.0
        self._window: tuple[float, Prefills] | None = None

    def update(self, seen: Prefills, now_s: float) -> float:
        """Update with the current counters and return tokens per second; 0 if not measured yet."""
        plausible = Prefills(*map(_plausible, seen))
        count = self._requests if plausible.requests is None else plausible.requests
        requests, self._requests = max(0.0, count - self._requests), count
        self._compare_with_time(plausible, now_s)
        return self._rate.update(seen.tokens, seen.seconds, now_s, least=requests * _PREFILL_MIN)

    def _compare_with_time(self, seen: Prefills, now_s: float) -> None:
        """At the end of a window, record its tokens divided by at most its length."""
        if self._window is None or _decreased(self._window[1], seen):
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


def _plausible(counter: float | None) -> float | None:
    """Return `counter`, or None if it is implausible."""
    return counter if counter is not None and 0 <= counter <= _COUNTED_MAX else None


def _since(first: Prefills, now: Prefills) -> list[float]:
    """Return the increase of each counter; 0 for one that is not reported."""
    pairs = zip(first, now, strict=True)
    return [0.0 if a is None or b is None else b - a for a, b in pairs]


def _decreased(first: Prefills, now: Prefills) -> bool:
    """Return whether a counter decreased, or the set of reported counters changed."""
    return min(_since(first, now)) < 0 or first.count(None) != now.count(None)
