import asyncio
import json
import os
import stat
from pathlib import Path

from kvtier.router.choose.base import Candidate, InferenceRequest
from kvtier.router.choose.decision import RoutingDecision
from kvtier.router.choose.record import read_records
from kvtier.router.route.forwarding import REQUEST_ID
from tests.router.replicas import DONE, EVENT
from tests.router.route.routers import InTurn, run, stand, until


def test_request_body_reaches_replica_unchanged() -> None:
    async def test() -> None:
        async with stand() as at:
            body = b'{ "model" : "m",\n"prompt":"\\u00e4","temperature":0.70 ,"x":[]}'
            async with at.client.post(
                at.url + "/completions?a=%20b", data=body, headers={"Content-Type": "text/plain"}
            ) as answer:
                assert answer.status == 200
                assert answer.headers["target-pod"] == at.replicas[0].address
                assert answer.headers["X-Replica"] == "a"
                assert answer.headers["request-id"] == answer.headers[REQUEST_ID]
            (request,) = at.replicas[0].requests
            assert request.raw_path == "/v1/completions?a=%20b"
            assert request.headers["Content-Type"] == "text/plain"
            assert request.headers[REQUEST_ID] == answer.headers["request-id"]
            assert at.replicas[0].bodies == [body]

    run(test())


def test_request_is_sent_to_replica_that_serves_its_model() -> None:
    async def test() -> None:
        async with stand("m", count=2) as at:
            b = at.replicas[1]
            b.models.append("lora")
            await until(lambda: at.router.fleet.candidates("lora"), "the adapter is noticed")
            for _ in range(4):
                async with at.post(model="lora") as answer:
                    assert (await answer.json())["from"] == "b"
            async with at.post(model="none") as answer:
                assert answer.status == 404
                assert (await answer.json())["error"]["code"] == "model_not_found"

    run(test())


def test_unreachable_replica_is_skipped_then_taken_out_by_breaker() -> None:
    async def test() -> None:
        chooser = InTurn()
        async with stand(count=2, chooser=chooser, health_interval=60.0) as at:
            a, b = at.replicas
            await a.stop()
            for _ in range(20):
                async with at.post() as answer:
                    assert (answer.status, (await answer.json())["from"]) == (200, "b")
            assert chooser.routed_to.count("a") == 5, "its breaker has opened"
            assert await at.metric("kvtier_route_retried_requests_total") == 5
            assert await at.metric('kvtier_route_replica_state{replica="a"}') == 1
            await b.stop()
            async with at.post() as answer:
                assert answer.status == 503
                assert "Retry-After" in answer.headers
                assert "cannot be reached" in (await answer.json())["error"]["message"]

    run(test())


def test_request_whose_replica_disconnects_is_resent_once() -> None:
    async def test() -> None:
        async with stand(count=4) as at:
            for replica in at.replicas:
                replica.dies_before_head = 9
            async with at.post() as answer:
                assert answer.status == 502
                assert (await answer.json())["error"]["code"] == "bad_gateway"
            assert sum(len(replica.requests) for replica in at.replicas) == 2
            at.replicas[2].dies_before_head = at.replicas[3].dies_before_head = 0
            statuses = []
            for _ in range(4):
                async with at.post() as answer:
                    statuses.append(answer.status)
            assert statuses.count(200) >= 2

    run(test())


def test_answer_with_headers_only_is_retried() -> None:
    async def test() -> None:
        async with stand(count=2) as at:
            at.replicas[0].dies_before_body = True
            async with at.post(stream=True) as answer:
                assert await answer.read() == EVENT * 4 + DONE
                assert answer.headers["target-pod"] == at.replicas[1].address

    run(test())


def test_only_replica_is_asked_again_after_disconnect() -> None:
    async def test() -> None:
        async with stand() as at:
            (a,) = at.replicas
            a.dies_before_head = 1
            async with at.post() as answer:
                assert answer.status == 200
            a.dies_before_head = 2
            async with at.post() as answer:
                assert answer.status == 502
            assert len(a.requests) == 4
        async with stand(resends=0) as at:
            at.replicas[0].dies_before_head = 1
            async with at.post() as answer:
                assert answer.status == 502

    run(test())


def test_busy_replica_is_skipped_and_its_answer_kept() -> None:
    async def test() -> None:
        async with stand(count=2) as at:
            a, b = at.replicas
            a.status = 503
            async with at.post() as answer:
                assert (answer.status, (await answer.json())["from"]) == (200, "b")
            b.status = 503
            async with at.post() as answer:
                assert answer.status == 503
                assert (await answer.json())["from"] in "ab"
                assert answer.headers["target-pod"] in (a.address, b.address)
            for member in at.router.fleet.members:
                assert member.is_available, "a busy replica stays available"

    run(test())


def test_resent_request_waits_for_room() -> None:
    async def test() -> None:
        async with stand(count=2, in_flight=1) as at:
            a, b = at.replicas
            a.held.clear()
            b.held.clear()
            a.dies_before_head = 1
            asking = [asyncio.ensure_future(at.post().__aenter__()) for _ in range(2)]
            await until(lambda: a.requests and b.requests, "both have a request")
            a.held.set()
            (endpoint,) = [
                member.endpoint for member in at.router.fleet.members if member.endpoint.name == "a"
            ]
            await until(lambda: endpoint.in_flight == 0, "one replica has died")
            assert await at.metric("kvtier_route_queued_requests") == 1
            assert len(b.requests) == 1
            b.held.set()
            answers = await asyncio.gather(*asking)
            assert [(await answer.json())["from"] for answer in answers] == ["b", "b"]

    run(test())


def test_lookup_does_not_wait_for_room() -> None:
    async def test() -> None:
        async with stand(in_flight=1) as at:
            (a,) = at.replicas
            a.known_ids.add("r1")
            a.held.clear()
            asking = asyncio.ensure_future(at.post().__aenter__())
            await until(lambda: a.requests, "the replica is at its limit")
            async with at.client.get(at.url + "/v1/responses/r1") as answer:
                assert answer.status == 200
            a.held.set()
            await asking

    run(test())


def test_profile_that_filters_all_replicas_answers_503() -> None:
    async def test() -> None:
        async with stand(chooser=InTurn(only="nobody")) as at, at.post() as answer:
            assert answer.status == 503
            assert "filters" in (await answer.json())["error"]["message"]

    run(test())


def test_load_is_counted_until_request_ends() -> None:
    async def test() -> None:
        async with stand() as at:
            (a,) = at.replicas
            a.held.clear()
            endpoint = at.router.fleet.members[0].endpoint
            asking = asyncio.ensure_future(at.post(max_tokens=100).__aenter__())
            await until(lambda: a.requests, "the request arrives")
            assert endpoint.in_flight == 1
            assert endpoint.in_flight_tokens > 100
            assert (endpoint.pending_tokens or 0) > 0
            assert await at.metric('kvtier_route_in_flight_requests{replica="a"}') == 1
            a.held.set()
            await (await asking).read()
            left = (endpoint.in_flight, endpoint.in_flight_tokens, endpoint.pending_tokens)
            assert left == (0, 0, 0)

    run(test())


def test_chooser_that_fails_after_choosing_leaves_no_load() -> None:
    class Forgetful(InTurn):
        def routed(
            self, request: InferenceRequest, decision: RoutingDecision, chosen: Candidate
        ) -> None:
            raise RuntimeError("a bug")

    async def test() -> None:
        async with stand(chooser=Forgetful()) as at:
            async with at.post() as answer:
                assert answer.status == 500
            (member,) = at.router.fleet.members
            endpoint = member.endpoint
            load = (endpoint.in_flight, endpoint.in_flight_tokens, endpoint.pending_tokens)
            assert load == (0, 0, 0)

    run(test())


def test_strategy_header_selects_strategy_and_is_returned() -> None:
    async def test() -> None:
        named = {"random": InTurn(only="b", told={"x-session-id": "s"})}
        async with stand(count=2, named=named) as at:
            async with at.post(headers={"routing-strategy": "random"}) as answer:
                assert answer.headers["routing-strategy"] == "random"
                assert answer.headers["x-session-id"] == "s"
                assert (await answer.json())["from"] == "b"
            async with at.post(headers={"routing-strategy": "fastest"}) as answer:
                assert answer.status == 400
                assert (await answer.json())["error"]["param"] == "routing-strategy"
            async with at.post() as answer:
                assert "routing-strategy" not in answer.headers

    run(test())


def test_chooser_receives_model_prompt_and_headers() -> None:
    async def test() -> None:
        chooser = InTurn()
        async with stand(chooser=chooser) as at:
            headers = {"X-Session-Id": "s", "x-request-id": "r1"}
            async with at.post(max_tokens=5, priority=3, headers=headers):
                pass
            (request,) = chooser.seen
            assert (request.request_id, request.model) == ("r1", "m")
            assert (request.max_tokens, request.priority) == (5, 3)
            assert request.headers["x-session-id"] == "s"

    run(test())


def test_decision_is_explained_and_logged_on_demand(tmp_path: Path) -> None:
    async def test() -> None:
        log = tmp_path / "decisions.jsonl"
        async with stand(explain="asked", decisions=str(log)) as at:
            async with at.post() as answer:
                assert "x-kvtier-decision" not in answer.headers
            async with at.post(headers={"x-kvtier-explain": "1"}) as answer:
                told = json.loads(answer.headers["x-kvtier-decision"])
                assert told["endpoints"][0]["name"] == "a"
            assert "x-kvtier-explain" not in at.replicas[0].requests[-1].headers
        assert [record.chosen for record in read_records(str(log))] == [("a",), ("a",)]
        assert stat.S_IMODE(os.stat(log).st_mode) == 0o600
        async with stand(explain="always") as at, at.post() as answer:
            assert "x-kvtier-decision" in answer.headers
        async with stand() as at, at.post(headers={"x-kvtier-explain": "1"}) as answer:
            assert "x-kvtier-decision" not in answer.headers

    run(test())


def test_lookup_asks_replicas_until_one_knows() -> None:
    async def test() -> None:
        async with stand(count=3) as at:
            at.replicas[2].known_ids.add("r1")
            async with at.client.get(at.url + "/v1/responses/r1") as answer:
                assert (answer.status, (await answer.json())["from"]) == (200, "c")
            async with at.client.get(at.url + "/v1/responses/r2") as answer:
                assert answer.status == 404
                assert (await answer.json())["id"] == "r2"
            async with at.client.get(at.url + "/version") as answer:
                assert await answer.json() == {"version": "0.32.0"}
            await at.replicas[0].stop()
            async with at.client.get(at.url + "/v1/responses/r1") as answer:
                assert (await answer.json())["from"] == "c"

    run(test())


def test_replica_key_replaces_client_key() -> None:
    async def test() -> None:
        headers = {"Authorization": "Bearer client"}
        async with stand(keys=["client"], replica_key="secret") as at:
            async with at.post(headers=headers) as answer:
                assert answer.status == 200
            assert at.replicas[0].requests[0].headers["Authorization"] == "Bearer secret"
        async with stand(keys=["client"]) as at:
            async with at.post(headers=headers):
                pass
            assert "Authorization" not in at.replicas[0].requests[0].headers

    run(test())
