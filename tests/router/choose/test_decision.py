from kvtier.index.fleet.base import Match
from kvtier.router.choose.base import Candidate
from kvtier.router.choose.decision import RoutingDecision
from tests.router.cases import endpoint, request


def test_what_is_missing_is_what_no_index_knows_of() -> None:
    one = Candidate(
        endpoint("a"), {"gpu": Match({"device": 300}, 1000), "cpu": Match({"ram": 700}, 1000)}
    )
    decision = RoutingDecision("default", request(1000), [one], 0.0)
    assert decision.missing_tokens(one) == 300
    assert decision.missing_tokens(Candidate(endpoint("b"), {})) == 1000


def test_endpoints_are_those_of_the_chosen() -> None:
    one = Candidate(endpoint("a"), {})
    decision = RoutingDecision("default", request(), [one], 0.0)
    assert decision.endpoints == []
    decision.chosen = [one]
    assert decision.endpoints == [one.endpoint]
