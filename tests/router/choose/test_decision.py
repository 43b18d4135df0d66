from kvtier.index.fleet.base import Match
from kvtier.router.choose.base import Candidate
from kvtier.router.choose.decision import RoutingDecision
from tests.router.cases import endpoint, request


def test_missing_tokens_are_those_in_no_index() -> None:
    one = Candidate(
        endpoint("a"), {"gpu": Match({"device": 300}, 1000), "cpu": Match({"ram": 700}, 1000)}
    )
    decision = RoutingDecision("default", request(1000), [one], 0.0)
    assert decision.missing_tokens(one) == 300
    assert decision.missing_tokens(Candidate(endpoint("b"), {})) == 1000


def test_endpoints_are_those_of_the_chosen_candidates() -> None:
    one = Candidate(endpoint("a"), {})
    decision = RoutingDecision("default", request(), [one], 0.0)
    assert decision.endpoints == []
    decision.chosen = [one]
    assert decision.endpoints == [one.endpoint]
