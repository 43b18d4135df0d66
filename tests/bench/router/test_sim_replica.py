import pytest

from kvtier_bench.router.sim_replica import Job, Rates, SimulatedReplica, TierContent
from kvtier_bench.router.sim_trace import SessionTurn

RATES = Rates(
    device_tokens=3000,
    ram_tokens=10_000,
    prefill_tokens_per_s=1000.0,
    load_tokens_per_s=10_000.0,
    step_s=0.01,
    chunk_tokens=100_000,
)


def turn(session: int, system: int = 1000, own: int = 1000, answer: int = 10) -> SessionTurn:
    return SessionTurn(((0,), (0, session, 0)), (system, own), answer, 1.0)


def job(session: int, **sizes: int) -> Job:
    return Job(session, turn(session, **sizes), 0.0, 0)


def test_end_of_a_prefix_is_evicted_first() -> None:
    content = TierContent(2500)
    content.add(turn(1), (1000, 1010))
    assert content.prefix(turn(1)) == 2000
    assert content.prefix(turn(2)) == 1000
    content.add(turn(2), (1000, 1010))
    assert (content.prefix(turn(1)), content.prefix(turn(2))) == (1000, 2000)
    content.shrink(1500)
    assert content.prefix(turn(2)) == 1000


def test_tokens_in_a_tier_are_not_computed_again() -> None:
    replica = SimulatedReplica("a", RATES)
    first = job(1)
    replica.waiting.append(first)
    started = replica.start(0.0)
    assert started is not None
    assert started.first_s == pytest.approx(2.01)  # 2,000 tokens and a step
    assert started.done_s == pytest.approx(2.11)
    replica.prefilling = False
    replica.finish(first)
    # Another request fills the device; of the first, only the system prompt stays there.
    second = job(2)
    replica.waiting.append(second)
    started = replica.start(10.0)
    assert started is not None
    assert (started.device_tokens, started.ram_tokens) == (1000, 0)
    replica.prefilling = False
    replica.finish(second)
    replica.waiting.append(first)
    started = replica.start(20.0)
    assert started is not None
    assert (started.device_tokens, started.ram_tokens) == (1000, 1000)
    assert started.first_s == pytest.approx(20.11)  # loaded, and a step


def test_prefills_run_one_at_a_time_and_only_if_they_fit() -> None:
    replica = SimulatedReplica("a", RATES)
    first, second = job(1), job(2)
    replica.waiting.extend((first, second))
    assert replica.start(0.0) is not None
    assert replica.start(0.0) is None
    replica.prefilling = False
    assert replica.start(1.0) is None  # 2,010 of 3,000 tokens are taken
    replica.report(1.0)
    load = replica.endpoint.load
    assert (load.waiting, load.running, load.kv_usage) == (1, 1, pytest.approx(0.67))
    replica.finish(first)
    assert replica.start(2.0) is not None


def test_prompt_longer_than_the_device_runs_alone() -> None:
    replica = SimulatedReplica("a", RATES)
    replica.waiting.append(job(1, own=5000))
    assert replica.start(0.0) is not None


def test_next_prefill_waits_for_the_current_one() -> None:
    replica = SimulatedReplica("a", RATES)
    replica.waiting.extend((job(1, own=100), job(2, own=100)))
    assert replica.start(0.0) is not None
    assert replica.start(0.0) is None
    replica.prefilling = False
    assert replica.start(1.0) is not None
