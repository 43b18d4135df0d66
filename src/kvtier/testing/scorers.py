"""The contract suite for scorers of the router.

    class TestMine(ScorerContract):
        def make_scorer(self, context: PluginContext) -> Scorer:
            return Mine(MineParameters(), context)

Needs pytest. No test depends on time.
"""

from abc import ABC, abstractmethod

import msgspec
import pytest

from kvtier.clock import seeded
from kvtier.index.fleet.base import Match
from kvtier.index.fleet.prompt import UnreadPrompt
from kvtier.router.choose.base import (
    Candidate,
    Endpoint,
    InferenceRequest,
    ReplicaLoad,
    ReplicaTier,
    Scorer,
)
from kvtier.router.choose.plugins import PluginContext, Random

INDEX = "prefix"
"""The index that every candidate of the suite has a match in."""

_TIERS = ("device", "ram", "disk")
_MODEL = "m"


class ScorerContract(ABC):
    """The tests of a scorer: subclass it, implement `make_scorer`, and run pytest."""

    @abstractmethod
    def make_scorer(self, context: PluginContext) -> Scorer:
        """Return a new scorer."""

    @pytest.fixture
    def scorer(self) -> Scorer:
        """A new scorer with the context of the suite."""
        return self.make_scorer(sample_context())

    def test_no_candidates_have_no_scores(self, scorer: Scorer) -> None:
        """The filters may have removed every replica."""
        assert scorer.score(sample_request(), []) == []

    @pytest.mark.parametrize("seed", range(20))
    def test_each_candidate_has_a_score_from_zero_to_one(self, scorer: Scorer, seed: int) -> None:
        """A profile clamps other values and thereby hides a mistake. NaN is neither."""
        fleet = sample_fleet(seed)
        scores = scorer.score(sample_request(seed), fleet)
        assert len(scores) == len(fleet)
        assert all(0.0 <= score <= 1.0 for score in scores)

    def test_replica_without_metrics_is_scored(self, scorer: Scorer) -> None:
        """A replica is chosen from before its first scrape, and many have no labels."""
        fleet = [
            _candidate(Endpoint(name=name, address=f"{name}:8000", models=frozenset({_MODEL})))
            for name in ("a", "b")
        ]
        assert all(0.0 <= score <= 1.0 for score in scorer.score(sample_request(), fleet))

    @pytest.mark.parametrize("seed", range(5))
    def test_scores_follow_the_order_of_the_candidates(self, scorer: Scorer, seed: int) -> None:
        """The order in which replicas are listed does not matter."""
        fleet, request = sample_fleet(seed), sample_request(seed)
        scores = scorer.score(request, fleet)
        assert scorer.score(request, fleet[::-1]) == pytest.approx(scores[::-1])

    @pytest.mark.parametrize("seed", range(5))
    def test_scoring_changes_nothing(self, scorer: Scorer, seed: int) -> None:
        """A decision is explained and replayed by scoring the same candidates again."""
        fleet, request = sample_fleet(seed), sample_request(seed)
        before = [msgspec.to_builtins(candidate.endpoint) for candidate in fleet]
        scores = scorer.score(request, fleet)
        assert [msgspec.to_builtins(candidate.endpoint) for candidate in fleet] == before
        assert scorer.score(request, fleet) == scores

    @pytest.mark.parametrize("seed", range(5))
    def test_same_seed_gives_the_same_scores(self, seed: int) -> None:
        """Two scorers that see the same requests agree."""
        one, other = (self.make_scorer(sample_context()) for _ in range(2))
        fleet, request = sample_fleet(seed), sample_request(seed)
        assert one.score(request, fleet) == other.score(request, fleet)


def sample_context() -> PluginContext:
    """Return a context with a seeded source of randomness, a still clock, and the index INDEX."""
    return PluginContext(name="it", random=seeded(0), now_s=lambda: 0.0, index=INDEX)


def sample_request(seed: int = 0) -> InferenceRequest:
    """Return a request for a prompt of 1 to 20,000 tokens."""
    tokens = seeded(seed).randrange(20_000) + 1
    return InferenceRequest(request_id=str(seed), model=_MODEL, prompt=UnreadPrompt(tokens))


def sample_fleet(seed: int) -> list[Candidate]:
    """Return 1 to 8 candidates with random load and random matches in INDEX."""
    rng = seeded(seed + 1)
    total_tokens = sample_request(seed).prompt.tokens
    return [
        _candidate(_endpoint(f"replica-{number}", rng), _match(total_tokens, rng))
        for number in range(1 + rng.randrange(8))
    ]


def _endpoint(name: str, rng: Random) -> Endpoint:
    load = ReplicaLoad(
        waiting=rng.randrange(20),
        running=rng.randrange(200),
        kv_usage=rng.random(),
        block_tokens=16,
        tiers={
            tier: ReplicaTier(capacity_tokens=100_000, load_tokens_per_s=100_000 * rng.random())
            for tier in _TIERS
        },
        prefill_tokens_per_s=rng.randrange(20_000),
    )
    return Endpoint(
        name=name,
        address=f"{name}:8000",
        models=frozenset({_MODEL}),
        load=load,
        in_flight=rng.randrange(50),
        in_flight_tokens=rng.randrange(1_000_000),
        pending_tokens=rng.randrange(100_000),
    )


def _match(total_tokens: int, rng: Random) -> Match:
    """Return a match in which a slower tier never has fewer tokens than a faster one."""
    held = sorted(rng.randrange(total_tokens + 1) // 16 * 16 for _ in _TIERS)
    return Match(dict(zip(_TIERS, held, strict=True)), total_tokens)


def _candidate(endpoint: Endpoint, match: Match | None = None) -> Candidate:
    return Candidate(endpoint, {INDEX: match or Match({}, sample_request().prompt.tokens)})
