from pathlib import Path

import pytest

from kvtier.errors import InvalidSettings
from kvtier.index.fleet.prompt import TokenPrompt
from kvtier.router.choose.base import InferenceRequest
from kvtier_bench.router.sim import policies
from kvtier_bench.router.sim_replica import Rates, SimulatedReplica

EXAMPLES = Path("examples/router")


@pytest.mark.parametrize("name", list(policies(EXAMPLES)))
def test_policy_chooses_a_replica(name: str) -> None:
    endpoints = [SimulatedReplica(one, Rates()).endpoint for one in ("a", "b")]
    profile = policies(EXAMPLES)[name](endpoints)
    request = InferenceRequest(request_id="1", model="m", prompt=TokenPrompt(range(500), "m"))
    decision = profile.decide(request, endpoints, 0.0)
    assert decision.chosen[0].endpoint in endpoints
    profile.routed(request, decision, decision.chosen[0])


def test_indexes_have_the_sizes_that_replicas_report() -> None:
    small = Rates(device_tokens=192, ram_tokens=320)
    endpoints = [SimulatedReplica(one, small).endpoint for one in ("a", "b")]
    profile = policies(EXAMPLES)["expected-ttft"](endpoints)
    request = InferenceRequest(request_id="1", model="m", prompt=TokenPrompt(range(1000), "m"))
    first = profile.decide(request, endpoints, 0.0)
    profile.routed(request, first, first.chosen[0])
    again = profile.decide(request, endpoints, 0.0)
    held = {
        candidate.endpoint.name: match.tokens
        for candidate in again.candidates
        for match in candidate.matches.values()
    }
    assert held[first.chosen[0].endpoint.name] == {"device": 192, "ram": 320}


def test_missing_examples_are_an_error(tmp_path: Path) -> None:
    with pytest.raises((InvalidSettings, OSError)):
        policies(tmp_path)
