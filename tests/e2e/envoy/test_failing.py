"""A real Envoy when endpoints, streams or the picker fail."""

import http.client
import json
import threading
from pathlib import Path

import pytest

from kvtier.router.epp import messages
from tests.e2e.envoy.servers import Stage, ask, envoy_program, free_ports, stage, wait_for

BODY = {"model": "m", "prompt": "Once upon a time " * 20}
LARGE = {**BODY, "noise": "x" * 300_000}


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--buffered",)], ids=["duplex", "buffered"])
def test_fallback_serves_when_first_endpoint_is_dead(scene: Stage, flags: tuple[str, ...]) -> None:
    replicas = [scene.replica() for _ in range(3)]
    epp, _ = scene.epp(replicas, "--test-endpoint-selection", "--fallbacks", "2")
    port = scene.envoy(epp, replicas, "--health-path", "", *flags)
    scene.replicas[replicas[0]].kill()
    for last in replicas[1:]:
        headers = {messages.TEST_SELECTION: f"{replicas[0]},{last}"}
        for body in (BODY, LARGE):
            answer = ask(port, body, headers)
            assert (answer.status, answer.served) == (200, last)


@pytest.mark.slow
def test_picker_stops_naming_dead_endpoint(scene: Stage) -> None:
    replicas = [scene.replica() for _ in range(2)]
    epp, metrics = scene.epp(replicas)
    port = scene.envoy(epp, replicas)
    scene.replicas[replicas[0]].kill()

    def known() -> bool:
        text = ask(metrics, method="GET", path="/metrics").body.decode()
        return "kvtier_epp_ready_endpoints 1.0" in text

    wait_for("the health checks", known)
    for _ in range(5):
        told = ask(port, BODY).json()
        assert told["headers"][messages.DESTINATION] == replicas[1]
    scene.replicas[replicas[1]].kill()
    # Until the picker notices, Envoy answers with a 503 of its own.
    wait_for("the picker", lambda: messages.DROPPED_REASON in ask(port, BODY).headers)
    answer = ask(port, BODY)
    assert answer.status == 503
    assert answer.headers[messages.DROPPED_REASON] == "rejected-no-endpoints"
    assert answer.json()["error"]["type"] == "overloaded_error"


@pytest.mark.slow
def test_replica_death_ends_its_stream(scene: Stage) -> None:
    replicas = [scene.replica() for _ in range(2)]
    epp, _ = scene.epp(replicas, "--test-endpoint-selection")
    port = scene.envoy(epp, replicas)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    body = json.dumps({**BODY, "stream": True, "delay_s": 0.2})
    headers = {"content-type": "application/json", messages.TEST_SELECTION: replicas[0]}
    connection.request("POST", "/v1/completions", body, headers)
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline().startswith(b"data:")
    scene.replicas[replicas[0]].kill()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        response.read()
    connection.close()
    # The stream was not restarted elsewhere, and the next request is served.
    assert ask(port, BODY, {messages.TEST_SELECTION: replicas[1]}).served == replicas[1]


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param((), id="duplex"),
        pytest.param(("--buffered",), id="buffered", marks=pytest.mark.slow),
    ],
)
def test_fail_open_serves_without_picker_until_it_returns(
    scene: Stage, flags: tuple[str, ...]
) -> None:
    replicas = [scene.replica() for _ in range(2)]
    epp, metrics = scene.epp(replicas, "--test-endpoint-selection")
    port = scene.envoy(epp, replicas, *flags)
    assert scene.picker is not None
    scene.picker.kill()
    wait_for("Envoy to notice", lambda: not scene.healthy(f"127.0.0.1:{epp}"))
    served = set()
    for _ in range(12):
        for body in (BODY, LARGE):
            answer = ask(port, body, {messages.DESTINATION: replicas[0]})
            assert answer.status == 200
            served.add(answer.served)
    assert served == set(replicas), "the client's header must not choose the endpoint"
    scene.picker.restart()
    scene.await_epp(scene.picker, metrics)
    wait_for("Envoy to notice", lambda: scene.healthy(f"127.0.0.1:{epp}"))

    def steers() -> bool:  # on a slow machine the picker's first answers come too late
        asked = (
            (wanted, ask(port, BODY, {messages.TEST_SELECTION: wanted})) for wanted in replicas * 5
        )
        return all(answer.served == wanted for wanted, answer in asked)

    wait_for("the picker to be asked again", steers)


@pytest.mark.slow
def test_fail_close_refuses_without_picker(scene: Stage) -> None:
    replicas = [scene.replica()]
    epp, _ = scene.epp(replicas)
    port = scene.envoy(epp, replicas, "--fail-close")
    assert ask(port, BODY).status == 200
    assert scene.picker is not None
    scene.picker.kill()
    wait_for("Envoy to notice", lambda: not scene.healthy(f"127.0.0.1:{epp}"))
    for body in (BODY, LARGE):
        assert ask(port, body).status in (500, 503, 504)


def test_stopping_picker_fails_no_request(scene: Stage) -> None:
    replicas = [scene.replica() for _ in range(2)]
    epp, _ = scene.epp(replicas, "--drain", "3s")
    port = scene.envoy(epp, replicas)
    assert scene.picker is not None
    statuses: list[int] = []
    stop = threading.Event()

    def ask_on() -> None:
        while not stop.is_set():
            statuses.append(ask(port, BODY).status)

    client = threading.Thread(target=ask_on)
    client.start()
    try:
        wait_for("requests", lambda: len(statuses) > 5)
        assert scene.picker.stop() == 0
        before = len(statuses)
        wait_for("requests after the end", lambda: len(statuses) > before + 5)
    finally:
        stop.set()
        client.join()
    assert set(statuses) == {200}


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [(), ("--buffered",), ("--observe-responses",), ("--insecure", "--fail-close")],
    ids=lambda flags: "-".join(flags) or "default",
)
def test_generated_configuration_is_valid(
    tmp_path: Path, envoy: str, flags: tuple[str, ...]
) -> None:
    import os
    import subprocess
    import sys

    from tests.e2e.envoy.servers import ROOT

    command = [sys.executable, "-c", "from kvtier.cli.main import main; main()"]
    command += ["epp", "envoy-config", "--endpoint", "127.0.0.1:8000", "--endpoint", "[::1]:8001"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    path = tmp_path / "envoy.yaml"
    with path.open("wb") as out:
        subprocess.run([*command, *flags], check=True, stdout=out, env=environment)
    validate = [envoy, "--mode", "validate", "-c", str(path), "--disable-hot-restart"]
    done = subprocess.run(validate, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


def test_taken_port_is_reported_in_one_line(tmp_path: Path) -> None:
    if envoy_program() is None:
        pytest.skip("with the others")
    with stage(tmp_path, "") as scene:
        replica = scene.replica()
        epp, _ = scene.epp([replica])
        health, metrics = free_ports(2)
        import sys

        second = scene.start(
            "second",
            [sys.executable, "-c", "from kvtier.cli.main import main; main()", "epp",
             "--endpoint", f"http://{replica}", "--grpc-port", str(epp),
             "--grpc-health-port", str(health), "--metrics-port", str(metrics)],
        )  # fmt: skip
        assert second.process.wait(20) == 2
        assert f"127.0.0.1:{epp} cannot be listened on" in second.text().splitlines()[-1]
        assert "Traceback" not in second.text()
