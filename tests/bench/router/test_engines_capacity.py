import pytest

from kvtier.clock import VirtualClock
from kvtier_bench.client import ServerAddress
from kvtier_bench.router import engines
from kvtier_bench.router.engines import deal, requests_per_minute
from kvtier_bench.router.traffic import Arrival

ARRIVALS = [
    Arrival(group, question, 0.0, f"{group}/{question}", 3)
    for question in (1, 0)
    for group in (2, 1, 0)
]


def test_deal_keeps_a_group_on_one_replica_first_questions_first() -> None:
    assert deal(ARRIVALS, 2) == [["2/0", "0/0", "2/1", "0/1"], ["1/0", "1/1"]]


def test_requests_per_minute_counts_all_replicas_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock()
    asked = []

    def takes_three(endpoint: ServerAddress, prompts: list[str], *_: int) -> None:
        asked.append((endpoint.port, len(prompts)))
        clock.advance(1.5)

    monkeypatch.setattr(engines, "complete_all", takes_three)
    endpoints = [ServerAddress("127.0.0.1", port, "m") for port in (1, 2)]
    assert requests_per_minute(endpoints, ARRIVALS, 4, clock) == pytest.approx(6 * 60 / 3)
    assert sorted(asked) == [(1, 4), (2, 2)]
