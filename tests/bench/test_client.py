import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kvtier_bench.client import RequestFailed, ServerAddress, complete, complete_all


class Completions(http.server.BaseHTTPRequestHandler):
    """A completions API whose answer depends on the first token of the prompt."""

    protocol_version = "HTTP/1.1"
    seen: list[dict[str, Any]]
    in_flight = 0
    most_in_flight = 0
    both_are_here: threading.Barrier | None = None
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        cls = type(self)
        with cls.lock:
            cls.in_flight += 1
            cls.most_in_flight = max(cls.most_in_flight, cls.in_flight)
        if cls.both_are_here is not None:
            cls.both_are_here.wait(timeout=20)
        self._answer(body)
        with cls.lock:
            cls.in_flight -= 1

    def _answer(self, body: dict[str, Any]) -> None:
        first = body["prompt"][0]
        if first == 500:
            self.send_response(500)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"oops")
            return
        events: list[Any] = [{"choices": [{"text": f"{first}"}]}, {"choices": [{"text": " b"}]}]
        usage = {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": body["max_tokens"],
            "prompt_tokens_details": {"cached_tokens": 1},
        }
        if first == 501:
            events = [{"error": {"message": "engine died"}}]
        elif first != 502:
            events.append({"choices": [], "usage": usage})
        lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"]
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            self.wfile.write(f"{len(line):x}\r\n{line}\r\n".encode())
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def served() -> Iterator[tuple[ServerAddress, type[Completions]]]:
    handler = type("Handler", (Completions,), {"seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield ServerAddress("127.0.0.1", server.server_port, "small"), handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_complete_returns_text_token_counts_and_latencies(
    served: tuple[ServerAddress, type[Completions]],
) -> None:
    answer = complete(served[0], [7, 8, 9], output_len=2)
    assert answer.text == "7 b"
    assert (answer.prompt_tokens, answer.cached_tokens, answer.output_tokens) == (3, 1, 2)
    assert 0 < answer.ttft_s <= answer.e2e_s


def test_requests_are_greedy_of_fixed_length_and_salted(
    served: tuple[ServerAddress, type[Completions]],
) -> None:
    complete(served[0], [7], output_len=5, salt="run-1")
    complete(served[0], [7], output_len=5)
    salted, plain = served[1].seen
    assert (salted["temperature"], salted["max_tokens"], salted["ignore_eos"]) == (0, 5, True)
    assert salted["cache_salt"] == "run-1"
    assert "cache_salt" not in plain


@pytest.mark.parametrize(
    ("first", "said"), [(500, "500.*oops"), (501, "engine died"), (502, "usage")]
)
def test_failed_request_contains_the_servers_message(
    served: tuple[ServerAddress, type[Completions]], first: int, said: str
) -> None:
    with pytest.raises(RequestFailed, match=said):
        complete(served[0], [first], output_len=1)


def test_refused_connection_is_a_failed_request() -> None:
    with pytest.raises(RequestFailed, match="connection"):
        complete(ServerAddress("127.0.0.1", 1, "small"), [1], output_len=1)


def test_complete_all_keeps_order_and_concurrency(
    served: tuple[ServerAddress, type[Completions]],
) -> None:
    endpoint, handler = served
    # Requests are answered in pairs, after both have arrived.
    handler.both_are_here = threading.Barrier(2)
    answers = complete_all(endpoint, [[n] for n in range(6)], output_len=1, concurrency=2)
    assert [answer.text for answer in answers] == [f"{n} b" for n in range(6)]
    assert handler.most_in_flight == 2


def test_complete_all_fails_if_one_request_fails(
    served: tuple[ServerAddress, type[Completions]],
) -> None:
    with pytest.raises(RequestFailed, match="oops"):
        complete_all(served[0], [[1], [500], [2]], output_len=1, concurrency=1)
