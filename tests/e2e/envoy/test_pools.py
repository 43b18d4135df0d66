"""Two pools with a picker each, behind one weighted route."""

from collections import Counter
from typing import Any

import pytest

from kvtier.router.epp import messages
from tests.e2e.envoy.servers import Stage, ask

BODY = {"model": "m", "prompt": "Once upon a time " * 20}
PER_ROUTE = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute"
WEIGHTS = (70, 30)


@pytest.mark.slow
def test_weighted_pools_use_their_own_pickers(scene: Stage) -> None:
    pools = [[scene.replica() for _ in range(2)] for _ in WEIGHTS]
    pickers = [scene.epp(pool)[0] for pool in pools]
    second: dict[str, Any] = {}

    def remember(config: dict[str, Any]) -> None:
        second.update(config["static_resources"])

    def weigh(config: dict[str, Any]) -> None:
        resources = config["static_resources"]
        for cluster in second["clusters"]:
            cluster["name"] += "-2"
            cluster["load_assignment"]["cluster_name"] += "-2"
            resources["clusters"].append(cluster)
        service = {"envoy_grpc": {"cluster_name": "endpoint_picker-2"}}
        override = {"@type": PER_ROUTE, "overrides": {"grpc_service": service}}
        manager = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        route = manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
        del route["cluster"]
        route["weighted_clusters"] = {
            "clusters": [
                {"name": "replicas", "weight": WEIGHTS[0]},
                {
                    "name": "replicas-2",
                    "weight": WEIGHTS[1],
                    "typed_per_filter_config": {"envoy.filters.http.ext_proc": override},
                },
            ]
        }

    scene.envoy(pickers[1], pools[1], change=remember)
    port = scene.envoy(pickers[0], pools[0], change=weigh, clusters=2)
    served: Counter[int] = Counter()
    for _ in range(200):
        answer = ask(port, BODY)
        assert answer.status == 200
        named = answer.json()["headers"][messages.DESTINATION].split(",")
        (number,) = [place for place, pool in enumerate(pools) if answer.served in pool]
        # The pool that served is the one whose picker was asked.
        assert named[0] == answer.served
        assert set(named) <= set(pools[number])
        served[number] += 1
    # Six standard deviations: fails by chance once in a billion runs.
    assert abs(served[0] - 2 * WEIGHTS[0]) < 39, served
