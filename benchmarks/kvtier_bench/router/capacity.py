"""What replicas can do, so that load can be a share of it on any machine.

The best that choosing can reach: every prefix is computed once, on one replica, groups are dealt
out evenly, and there is always something to do.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from kvtier.clock import Clock
from kvtier_bench.client import Endpoint, complete_all
from kvtier_bench.router.traffic import Arrival

_IN_FLIGHT: Final = 4
"""On each replica: enough that decoding is batched."""


def requests_per_minute(
    endpoints: Sequence[Endpoint], arrivals: Sequence[Arrival], output_len: int, clock: Clock
) -> float:
    """Asks the replicas themselves, all of it as fast as they can. Raises RequestFailed."""
    shares = deal(arrivals, len(endpoints))
    started_s = clock.now_s()
    with ThreadPoolExecutor(len(endpoints)) as pool:
        pending = [
            pool.submit(complete_all, endpoint, share, output_len, _IN_FLIGHT)
            for endpoint, share in zip(endpoints, shares, strict=True)
        ]
        for one in pending:
            one.result()
    return len(arrivals) * 60.0 / (clock.now_s() - started_s)


def deal(arrivals: Sequence[Arrival], count: int) -> list[list[str]]:
    """Texts for each replica: a group stays together, and its first comes long before the rest."""
    shares: list[list[str]] = [[] for _ in range(count)]
    for arrival in sorted(arrivals, key=lambda one: one.question):
        shares[arrival.group % count].append(arrival.text)
    return shares
