import pytest

from kvtier.router.choose.base import Candidate
from kvtier.router.scorers.no_hit_lru import PLUGIN
from tests.router.cases import candidate, made, request


def cold(*names: str) -> list[Candidate]:
    return [candidate(name) for name in names]


def test_any_hit_scores_one_half_for_all() -> None:
    scorer = made(PLUGIN)
    warm = [candidate("a"), candidate("b", {"disk": 16}), candidate("c")]
    assert scorer.score(request(), warm) == [0.5, 0.5, 0.5]


def test_replicas_without_a_cold_prompt_rank_first() -> None:
    scorer = made(PLUGIN)
    endpoints = cold("a", "b", "c")
    assert scorer.score(request(), endpoints) == [1.0, 0.5, 0.0]
    scorer.routed(request(), endpoints, endpoints[0])
    # b and c have received none and rank 0 and 1; a ranks last.
    assert scorer.score(request(), endpoints) == [0.0, 1.0, 0.5]
    scorer.routed(request(), endpoints, endpoints[1])
    scorer.routed(request(), endpoints, endpoints[2])
    assert scorer.score(request(), endpoints) == [1.0, 0.5, 0.0]
    scorer.routed(request(), endpoints, endpoints[0])
    assert scorer.score(request(), endpoints) == [0.0, 1.0, 0.5]


def test_warm_request_does_not_change_the_order() -> None:
    scorer = made(PLUGIN)
    warm = [candidate("a", {"ram": 16}), candidate("b")]
    scorer.routed(request(), warm, warm[0])
    assert scorer.score(request(), cold("a", "b")) == [1.0, 0.0]


def test_scores_are_spaced_by_rank() -> None:
    scorer = made(PLUGIN)
    assert scorer.score(request(), cold("a", "b")) == [1.0, 0.0]
    scorer.routed(request(), cold("a", "b"), cold("a")[0])
    assert scorer.score(request(), cold("a", "b")) == [0.0, 1.0]
    # Ranks 0 to 4: d and e have received none, followed by a, b and c in the order received.
    for name in "abc":
        scorer.routed(request(), cold(name), cold(name)[0])
    assert scorer.score(request(), cold("a", "b", "c", "d", "e")) == [0.5, 0.25, 0.0, 1.0, 0.75]


def test_hit_of_a_single_candidate_scores_one_half() -> None:
    assert made(PLUGIN).score(request(), [candidate("a", {"ram": 16})]) == [0.5]


def test_single_cold_candidate_scores_one() -> None:
    scorer = made(PLUGIN)
    assert scorer.score(request(), cold("a")) == [1.0]
    assert scorer.score(request(), []) == []


def test_lru_size_limits_remembered_replicas() -> None:
    scorer = made(PLUGIN, lru_size=1)
    endpoints = cold("a", "b", "c")
    scorer.routed(request(), endpoints, endpoints[0])
    scorer.routed(request(), endpoints, endpoints[1])  # replaces a
    assert scorer.score(request(), endpoints) == [1.0, 0.0, 0.5]
    assert scorer.reason(request(), endpoints[0]) == "never received a cold prompt"
    assert scorer.reason(request(), endpoints[1]) == "received a cold prompt before"
    with pytest.raises(ValueError, match="lruSize is 0"):
        PLUGIN.Parameters(lru_size=0)


def test_request_scored_as_cold_counts_as_cold_when_routed() -> None:
    # A filter removed the only replica with the prompt; the others must still take turns.
    scorer = made(PLUGIN)
    everyone = [*cold("a", "b", "c"), candidate("holder", {"ram": 16})]
    got = []
    for _ in range(4):
        asked = request()
        scores = scorer.score(asked, everyone[:3])
        best = everyone[scores.index(max(scores))]
        scorer.routed(asked, everyone, best)
        got.append(best.endpoint.name)
    assert got == ["a", "b", "c", "a"]


def test_fallback_routed_after_other_scores_is_judged_by_all_candidates() -> None:
    scorer = made(PLUGIN)
    late = request()
    scorer.score(late, cold("a", "b"))
    scorer.score(request(), [candidate("a", {"ram": 16}), candidate("b")])
    scorer.routed(late, cold("a", "b"), cold("a")[0])
    assert scorer.reason(late, cold("a")[0]) == "received a cold prompt before"
