import http.server
import threading
from collections.abc import Iterator

import pytest

from kvtier.clock import VirtualClock
from kvtier_bench.client import ServerAddress
from kvtier_bench.router.traffic import Arrival, send

EVENTS = (
    b'data: {"choices": [{"text": "yes"}]}\n\n'
    b'data: {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}\n\n'
)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers requests when two are in flight; refuses those that contain `refused`."""

    together = threading.Barrier(2)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        refused = b"refused" in body
        if not refused:
            self.together.wait(10)
        self.send_response(500 if refused else 200)
        self.end_headers()
        self.wfile.write(b"no" if refused else EVENTS)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def endpoint() -> Iterator[ServerAddress]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield ServerAddress("127.0.0.1", server.server_port, "small")
    server.shutdown()
    thread.join()
    server.server_close()


class LateClock(VirtualClock):
    """A clock whose sleeps take two seconds longer."""

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds + 2.0 if seconds else 0.0)


def test_send_does_not_wait_for_earlier_answers(endpoint: ServerAddress) -> None:
    arrivals = [Arrival(0, 0, 0.0, "a", 2), Arrival(1, 0, 5.0, "b", 2)]
    clock = VirtualClock()
    answers = send(endpoint, arrivals, 1, clock)
    assert [one.label for one in answers] == ["0/0", "1/0"]
    assert [one.completion.text for one in answers if one.completion] == ["yes", "yes"]
    assert clock.now_s() >= 5.0


def test_latencies_include_the_delay_of_a_late_client(endpoint: ServerAddress) -> None:
    arrivals = [Arrival(0, 0, 1.0, "a", 2), Arrival(1, 0, 1.0, "b", 2)]
    answers = send(endpoint, arrivals, 1, LateClock())
    for one in answers:
        assert one.late_s == pytest.approx(2.0)
        assert one.completion is not None
        assert one.completion.ttft_s >= 2.0
        assert one.completion.e2e_s >= one.completion.ttft_s


def test_failed_request_is_a_result_with_an_error(endpoint: ServerAddress) -> None:
    [answer] = send(endpoint, [Arrival(0, 0, 0.0, "refused", 1)], 1, VirtualClock())
    assert answer.completion is None
    assert "500" in answer.error
