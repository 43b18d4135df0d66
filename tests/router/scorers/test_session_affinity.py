import base64
import math

import pytest

from kvtier.router.scorers.session_affinity import (
    PLUGIN,
    EncodedEndpointHeader,
    SessionId,
    SessionIdSource,
)
from tests.router.cases import candidate, context, made, request

POD = "default/pod-1"
CANDIDATES = [candidate("default/pod-0"), candidate(POD, address="10.0.0.1:8000")]


class Time:
    at_s = 0.0

    def now_s(self) -> float:
        return self.at_s


def test_header_prefers_the_replica_it_names() -> None:
    scorer = made(PLUGIN)
    for said in (POD, "10.0.0.1:8000"):
        headers = {"x-session-token": base64.b64encode(said.encode()).decode()}
        assert scorer.score(request(headers=headers), CANDIDATES) == [0.0, 1.0]


@pytest.mark.parametrize("token", ["", "!!", "ZGVmYXVsdC9wb2QtOQ==", "/////w==", "é"])
def test_invalid_header_prefers_no_replica(token: str) -> None:
    headers = {"x-session-token": token}
    assert made(PLUGIN).score(request(headers=headers), CANDIDATES) == [0.0, 0.0]
    assert made(PLUGIN).score(request(), CANDIDATES) == [0.0, 0.0]


def test_response_header_leads_back_to_the_replica() -> None:
    scorer = made(PLUGIN)
    headers = scorer.response_headers(request(), CANDIDATES[1].endpoint)
    assert headers == {"x-session-token": "ZGVmYXVsdC9wb2QtMQ=="}
    assert scorer.score(request(headers=headers), CANDIDATES) == [0.0, 1.0]


def test_header_name_and_token_are_configurable() -> None:
    config = EncodedEndpointHeader(header="X-Session-Id", token_of="address")
    scorer = made(PLUGIN, encoded_endpoint_header_config=config)
    headers = scorer.response_headers(request(), CANDIDATES[1].endpoint)
    assert headers == {"x-session-id": base64.b64encode(b"10.0.0.1:8000").decode()}
    assert scorer.headers == {"x-session-id"}


def test_session_id_expires_after_its_ttl() -> None:
    time = Time()
    scorer = made(PLUGIN, context(now_s=time.now_s), strategy="session_id")
    mine = request(headers={"x-session-id": "s1"})
    assert scorer.score(mine, CANDIDATES) == [0.0, 0.0]
    scorer.routed(mine, CANDIDATES, CANDIDATES[1])
    time.at_s = 300.0
    assert scorer.score(mine, CANDIDATES) == [0.0, 1.0]
    scorer.routed(mine, CANDIDATES, CANDIDATES[1])  # extends the session by 300 s
    time.at_s = 600.0
    assert scorer.score(mine, CANDIDATES) == [0.0, 1.0]
    time.at_s = 600.5
    assert scorer.score(mine, CANDIDATES) == [0.0, 0.0]
    assert scorer.response_headers(mine, CANDIDATES[1].endpoint) == {}


def test_session_id_is_the_first_header_present() -> None:
    config = SessionId(sources=(SessionIdSource("x-agent"), SessionIdSource("x-session-id")))
    scorer = made(PLUGIN, strategy="session_id", session_id_config=config)
    scorer.routed(request(headers={"x-agent": "s"}), CANDIDATES, CANDIDATES[0])
    assert scorer.score(request(headers={"x-session-id": "s"}), CANDIDATES) == [1.0, 0.0]
    assert scorer.headers == {"x-agent", "x-session-id"}


def test_session_ids_are_limited_in_number_and_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtier.router.scorers.session_affinity._MOST_SESSIONS", 2)
    scorer = made(PLUGIN, strategy="session_id")
    for session in ("s1", "s2", "s3", "x" * 257):
        sent = request(headers={"x-session-id": session})
        scorer.routed(sent, CANDIDATES, CANDIDATES[0])
    found = [
        scorer.score(request(headers={"x-session-id": session}), CANDIDATES)[0]
        for session in ("s1", "s2", "s3", "x" * 257)
    ]
    assert found == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("seconds", [-5.0, math.nan])
def test_session_id_rejects_invalid_times(seconds: float) -> None:
    with pytest.raises(ValueError, match=r"evictionTtlSeconds is .*; write 0 or more"):
        SessionId(eviction_ttl_seconds=seconds)
    with pytest.raises(ValueError, match=r"evictionSweepSeconds is .*; write 0 or more"):
        SessionId(eviction_sweep_seconds=seconds)
