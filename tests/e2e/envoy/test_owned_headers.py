"""A gateway without protections of its own: clients' destination headers have no effect.

The generated configuration removes such headers before the picker sees them. Here it does not, and
requests end with trailers, with or without a body before them.
"""

import http.client
from collections.abc import Iterator
from typing import Any

import pytest

from kvtier.router.epp import messages
from tests.e2e.envoy.servers import PATIENCE_S, Answer, Stage, stage

BODY = b'{"model": "m", "prompt": "Once upon a time"}'
MODES = ("NONE", "STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED")
"""Modes of the request's body."""
BY_HEADER = {
    "name": "by-header",
    "type": "ORIGINAL_DST",
    "lb_policy": "CLUSTER_PROVIDED",
    "connect_timeout": "1s",
    "original_dst_lb_config": {"use_http_header": True, "http_header_name": messages.DESTINATION},
}
"""A cluster that sends requests wherever the header says."""


class Open:
    """An Envoy that passes clients' headers on, a replica that is picked, and an unknown one."""

    def __init__(self, scene: Stage, mode: str, cluster: str) -> None:
        self.picked = scene.replica()
        self.unknown = scene.replica()
        self.mode = mode
        self.cluster = cluster
        epp, _ = scene.epp([self.picked], "--observe-responses")
        self.port = scene.envoy(epp, [self.picked], "--observe-responses", change=self._open)

    def _open(self, config: dict[str, Any]) -> None:
        resources = config["static_resources"]
        manager = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        del manager["early_header_mutation_extensions"]
        manager["http_protocol_options"] = {"enable_trailers": True}
        ext_proc = manager["http_filters"][0]["typed_config"]
        ext_proc["failure_mode_allow"] = False
        ext_proc["message_timeout"] = "5s"
        ext_proc["processing_mode"]["request_body_mode"] = self.mode
        ext_proc["processing_mode"]["request_trailer_mode"] = "SEND"
        resources["clusters"].append(BY_HEADER)
        route = manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
        route["cluster"] = self.cluster
        # Envoy 1.40 sends a streamed body with trailers twice if it may retry.
        del route["retry_policy"]

    def ask(self, body: bytes) -> Answer:
        """Send a request with trailers that names the unknown replica in two headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.putrequest("POST", "/v1/completions")
            connection.putheader("content-type", "application/json")
            connection.putheader("transfer-encoding", "chunked")
            for _ in range(2):
                connection.putheader(messages.DESTINATION, self.unknown)
            connection.endheaders()
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            connection.send(chunk + b"0\r\nx-trailer: 1\r\n\r\n")
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module", params=["replicas", "by-header"])
def opened(
    request: pytest.FixtureRequest,
    mode: str,
    tmp_path_factory: pytest.TempPathFactory,
    envoy: str,
) -> Iterator[Open]:
    """An Envoy that follows the picker's metadata, or the picker's header."""
    with stage(tmp_path_factory.mktemp("envoy"), envoy) as scene:
        yield Open(scene, mode, request.param)


@pytest.mark.slow
def test_request_ignores_clients_destination(opened: Open) -> None:
    answer = opened.ask(BODY)
    assert (answer.status, answer.served) == (200, opened.picked), answer.body
    assert answer.json()["bytes"] == len(BODY)
    assert answer.json()["headers"][messages.DESTINATION] == opened.picked


@pytest.mark.slow
def test_request_without_body_ignores_clients_destination(opened: Open) -> None:
    answer = opened.ask(b"")
    if opened.cluster == "by-header" and opened.mode.startswith("BUFFERED"):
        # The picker answers to the trailers, when headers can no longer be set.
        assert answer.status == 503
        return
    assert (answer.status, answer.served) == (200, opened.picked), answer.body
