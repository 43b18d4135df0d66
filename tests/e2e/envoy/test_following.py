"""A real Envoy follows the picker: the data-plane half of the conformance tests."""

import base64
import concurrent.futures
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Value

from kvtier.router.epp import messages
from tests.e2e.envoy.servers import Stage, ask, stage, wait_for

BODY = {"model": "m", "prompt": "Once upon a time " * 20}


class Running:
    def __init__(self, scene: Stage, *flags: str, epp: tuple[str, ...] = ()) -> None:
        self.scene = scene
        self.replicas = [scene.replica() for _ in range(3)]
        self.epp, self.metrics = scene.epp(self.replicas, "--test-endpoint-selection", *epp)
        self.port = scene.envoy(self.epp, self.replicas, *flags, change=hints)

    def counted(self, name: str) -> float:
        text = ask(self.metrics, method="GET", path="/metrics").body.decode()
        (line,) = [line for line in text.splitlines() if line.startswith(name + " ")]
        return float(line.rpartition(" ")[2])


def hints(config: dict[str, Any]) -> None:
    """Turn a test's header into the subset hint of a gateway."""
    (listener,) = config["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    rule = {
        "header": "test-subset",
        "remove": True,
        "on_header_present": {
            "metadata_namespace": messages.SUBSET_HINT,
            "key": messages.SUBSET,
            "type": "PROTOBUF_VALUE",
            "encode": "BASE64",
        },
    }
    kind = "type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config"
    manager["http_filters"].insert(
        0,
        {
            "name": "envoy.filters.http.header_to_metadata",
            "typed_config": {"@type": kind, "request_rules": [rule]},
        },
    )


def subset(*addresses: str) -> dict[str, str]:
    value = Value()
    value.list_value.SetInParent()
    value.list_value.extend(list(addresses))
    return {"test-subset": base64.b64encode(value.SerializeToString()).decode()}


MODES = {
    "duplex": ((), ()),
    "buffered": (("--buffered",), ()),
    "observed": (("--observe-responses",), ("--observe-responses",)),
    "shown-but-not-observed": (("--observe-responses",), ()),
}


@pytest.fixture(scope="module", params=MODES)
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, envoy: str
) -> Iterator[Running]:
    flags, epp = MODES[request.param]
    with stage(tmp_path_factory.mktemp("envoy"), envoy) as scene:
        yield Running(scene, *flags, epp=epp)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_requests_follow_picker(running: Running, count: int) -> None:
    wanted = running.replicas[:count]

    def one(number: int) -> str | None:
        chosen = wanted[number % count]
        answer = ask(running.port, BODY, {messages.TEST_SELECTION: chosen})
        assert (answer.status, answer.served) == (200, chosen)
        return answer.served

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        served = Counter(pool.map(one, range(60)))
    assert served == dict.fromkeys(wanted, 60 // count)


@pytest.mark.parametrize("size", [0, 1, 62_000, 62_001, 300_000, 900_000])
def test_bodies_of_any_size_arrive_unchanged(running: Running, size: int) -> None:
    body = json.dumps({**BODY, "noise": "x" * size}).encode()
    told = ask(running.port, body).json()
    assert told["bytes"] == len(body)
    assert told["digest"] == hashlib.sha256(body).hexdigest()


def test_stream_of_64_chunks_is_complete(running: Running) -> None:
    def one(_: int) -> None:
        answer = ask(running.port, {**BODY, "stream": True})
        assert answer.status == 200
        lines = [line for line in answer.body.split(b"\n\n") if line]
        assert [json.loads(line[6:])["n"] for line in lines[:64]] == list(range(64))
        assert lines[-1] == b"data: [DONE]"

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(24)))


def test_request_without_body_goes_anywhere(running: Running) -> None:
    answer = ask(running.port, method="GET", path="/v1/models")
    assert answer.status == 200
    assert answer.json()["data"][0]["id"] == "m"


def test_subset_limits_picked_endpoints(running: Running) -> None:
    allowed = running.replicas[1]
    for _ in range(6):
        assert ask(running.port, BODY, subset(allowed)).served == allowed
    both = {ask(running.port, BODY, subset(*running.replicas[1:])).served for _ in range(8)}
    assert both <= set(running.replicas[1:])


@pytest.mark.parametrize("addresses", [(), ("10.9.8.7:1",)], ids=["empty", "foreign"])
def test_subset_without_ready_endpoints_gets_503(
    running: Running, addresses: tuple[str, ...]
) -> None:
    answer = ask(running.port, BODY, subset(*addresses))
    assert answer.status == 503
    assert answer.headers[messages.DROPPED_REASON] == "rejected-no-endpoints"
    assert answer.json()["error"]["code"] == "service_unavailable"
    assert "retry-after" in answer.headers


def test_client_headers_cannot_choose_endpoint(running: Running) -> None:
    target = running.replicas[2]
    headers = {
        messages.TEST_SELECTION: running.replicas[0],
        messages.DESTINATION: target,
        messages.SUBSET: target,
        messages.SERVED: target,
    }
    answer = ask(running.port, BODY, headers)
    assert answer.served == running.replicas[0]
    arrived = answer.json()["headers"]
    assert arrived[messages.DESTINATION].split(",")[0] == running.replicas[0]
    assert messages.SUBSET not in arrived
    assert messages.SERVED not in arrived


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b'{"model": "m", "prompt"', 400, "invalid_request"),
        (b'{"prompt": "hi"}', 400, "invalid_request"),
        (b'{"model": "nobody\'s"}', 404, "model_not_found"),
        (b"\xff\xfe", 400, "invalid_request"),
    ],
)
def test_invalid_request_gets_openai_error(
    running: Running, body: bytes, status: int, code: str
) -> None:
    answer = ask(running.port, body)
    assert (answer.status, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers[messages.DROPPED_REASON] == "rejected-invalid"


def test_model_rewrite_header_replaces_model(running: Running) -> None:
    body = {"model": "alias", "prompt": "é", "n": 1.0}
    answer = ask(running.port, body, {"x-gateway-model-name-rewrite": "m"})
    assert answer.status == 200
    assert answer.json()["model"] == "m"
    assert answer.json()["bytes"] == len(json.dumps({**body, "model": "m"}, separators=(",", ":")))


def test_concurrent_bodies_arrive_unchanged(running: Running) -> None:
    def one(number: int) -> None:
        body = json.dumps({**BODY, "noise": os.urandom(number * 400).hex()}).encode()
        answer = ask(running.port, body)
        assert answer.json()["digest"] == hashlib.sha256(body).hexdigest()

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(128)))


@pytest.mark.slow
def test_observe_responses_counts_tokens_and_served_endpoint(tmp_path: Path, envoy: str) -> None:
    with stage(tmp_path, envoy) as scene:
        running = Running(scene, "--observe-responses", epp=("--observe-responses",))
        wanted = running.replicas[1]
        answer = ask(running.port, {**BODY, "stream": True}, {messages.TEST_SELECTION: wanted})
        assert answer.served == wanted
        name = 'kvtier_epp_observed_tokens_total{counted="%s"}'
        wait_for("the response's end", lambda: running.counted(name % "prompt") == 7)
        assert running.counted(name % "cached") == 5
        assert running.counted(name % "completion") == 64
        assert running.counted("kvtier_epp_first_chunk_seconds_count") == 1
        assert running.counted("kvtier_epp_elsewhere_requests_total") == 0
        # The picker names a dead endpoint first: Envoy tries the next on the list.
        dead = running.replicas[0]
        scene.replicas[dead].kill()
        headers = {messages.TEST_SELECTION: f"{dead},{wanted}"}
        assert ask(running.port, BODY, headers).served == wanted
        name = "kvtier_epp_elsewhere_requests_total"
        wait_for("the response's end", lambda: running.counted(name) == 1)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["NONE", "STREAMED", "BUFFERED", "FULL_DUPLEX_STREAMED"])
def test_immediate_responses_are_complete_in_every_mode(scene: Stage, mode: str) -> None:
    """A replica that answers at once may be faster than the end of the picker's stream."""

    def show(config: dict[str, Any]) -> None:
        (listener,) = config["static_resources"]["listeners"]
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        shown = manager["http_filters"][0]["typed_config"]["processing_mode"]
        shown["response_header_mode"] = "SEND"
        shown["response_body_mode"] = mode
        shown["response_trailer_mode"] = "SEND" if mode == "FULL_DUPLEX_STREAMED" else "SKIP"

    replicas = [scene.replica()]
    epp, _ = scene.epp(replicas)
    port = scene.envoy(epp, replicas, change=show)

    def one(number: int) -> None:
        body = json.dumps({**BODY, "number": number}).encode()
        assert ask(port, body).json()["digest"] == hashlib.sha256(body).hexdigest()

    for number in range(50):
        one(number)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(150)))
