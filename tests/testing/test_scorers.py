"""The scorers of kvtier keep the contract, and the suite notices scorers that break it."""

from typing import Any

import pytest

from kvtier import plugins
from kvtier.router.choose.base import Scorer
from kvtier.router.choose.plugins import PluginContext
from kvtier.testing.scorers import ScorerContract, sample_context, sample_fleet, sample_request

SCORERS = plugins.known("router.scorers")


@pytest.mark.parametrize("name", SCORERS)
class TestBuiltInScorers(ScorerContract):
    @pytest.fixture(autouse=True)
    def plugin(self, name: str) -> None:
        self.plugin_class = plugins.load("router.scorers", name)

    def make_scorer(self, context: PluginContext) -> Scorer:
        return self.plugin_class(self.plugin_class.Parameters(), context)


class Broken(ScorerContract):
    """A suite whose scorer returns what `answer` makes of the candidates."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def make_scorer(self, context: PluginContext) -> Any:
        test = self

        class Scores:
            def score(self, request: Any, candidates: Any) -> list[float]:
                return test.answer(candidates)

        return Scores()


def rises(fleet: Any) -> list[float]:
    return [place / 10 for place in range(len(fleet))]


def sends(fleet: Any) -> list[float]:
    for one in fleet:
        one.endpoint.in_flight += 1
    return [0.5 for _ in fleet]


@pytest.mark.parametrize(
    ("test", "answer"),
    [
        ("test_no_candidates_have_no_scores", lambda fleet: [1.0]),
        ("test_each_candidate_has_a_score_from_zero_to_one", lambda fleet: [2.0 for _ in fleet]),
        (
            "test_each_candidate_has_a_score_from_zero_to_one",
            lambda fleet: [float("nan")] * len(fleet),
        ),
        ("test_each_candidate_has_a_score_from_zero_to_one", lambda fleet: [1.0]),
        ("test_scores_follow_the_order_of_the_candidates", rises),
        ("test_scoring_changes_nothing", sends),
    ],
)
def test_suite_fails_for_broken_scorer(test: str, answer: Any) -> None:
    suite = Broken(answer)
    scorer = suite.make_scorer(sample_context())
    seeds = [(seed,) for seed in range(5)] if "no_candidates" not in test else [()]

    def run() -> None:
        for seed in seeds:
            getattr(suite, test)(scorer, *seed)

    with pytest.raises(AssertionError):
        run()


def test_sample_fleets_have_several_sizes() -> None:
    assert len({len(sample_fleet(seed)) for seed in range(20)}) > 3
    assert sample_request(1).prompt.tokens != sample_request(2).prompt.tokens
