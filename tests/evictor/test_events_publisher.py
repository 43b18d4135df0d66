"""The publisher with real sockets on both sides."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
import zmq

from kvtier.errors import InvalidSettings
from kvtier.evictor.events import QUEUE_MESSAGES, Publisher

WAIT_MS = 20_000


class Make(Protocol):
    """Creates publishers that are closed at the end of the test."""

    def __call__(self, endpoint: str, queue_messages: int = QUEUE_MESSAGES) -> Publisher: ...


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Publisher] = []

    def publisher(endpoint: str, queue_messages: int = QUEUE_MESSAGES) -> Publisher:
        made.append(Publisher(endpoint, queue_messages))
        return made[-1]

    yield publisher
    for each in made:
        each.close()


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


def subscriber(
    context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str, topic: bytes = b"", queue: int = 1000
) -> "zmq.Socket[bytes]":
    made = context.socket(zmq.SUB)
    made.setsockopt(zmq.RCVHWM, queue)
    made.setsockopt(zmq.RCVTIMEO, WAIT_MS)
    made.setsockopt(zmq.SUBSCRIBE, topic)
    made.connect(endpoint)
    return made


def joined(publisher: Publisher, reader: "zmq.Socket[bytes]") -> None:
    """Send until the subscription has arrived, and discard these messages."""
    for _ in range(1000):
        publisher.send(b"hello", b"")
        if reader.poll(20):
            break
    while reader.poll(100):
        reader.recv_multipart()


def test_publisher_counts_messages_of_each_topic(
    make: Make,
    context: "zmq.Context[zmq.Socket[bytes]]",
) -> None:
    publisher = make("tcp://127.0.0.1:*")
    reader = subscriber(context, publisher.endpoint)
    joined(publisher, reader)
    for name in (b"a", b"b", b"a"):
        publisher.send(name, b"payload of " + name)
    found = [reader.recv_multipart() for _ in range(3)]
    assert found == [
        [b"a", bytes(8), b"payload of a"],
        [b"b", bytes(8), b"payload of b"],
        [b"a", bytes(7) + b"\x01", b"payload of a"],
    ]
    publisher.close()  # The fixture closes it again.


def test_publisher_connects_to_bound_subscriber(
    make: Make, context: "zmq.Context[zmq.Socket[bytes]]"
) -> None:
    reader = context.socket(zmq.SUB)
    reader.setsockopt(zmq.SUBSCRIBE, b"")
    port = reader.bind_to_random_port("tcp://127.0.0.1")
    publisher = make(f"connect:tcp://127.0.0.1:{port}")
    joined(publisher, reader)
    publisher.send(b"a", b"x")
    assert reader.recv_multipart()[0] == b"a"


def test_slow_subscriber_is_counted_and_delays_nothing(
    make: Make, context: "zmq.Context[zmq.Socket[bytes]]", tmp_path: Path
) -> None:
    publisher = make(f"ipc://{tmp_path}/events", queue_messages=10)
    slow = subscriber(context, publisher.endpoint, queue=3)
    quick = subscriber(context, publisher.endpoint)
    joined(publisher, slow)
    joined(publisher, quick)
    payload = bytes(1 << 20)
    for number in range(60):
        publisher.send(b"a", payload)
        assert quick.recv_multipart()[1] == number.to_bytes(8, "big")
    assert publisher.slow_subscribers > 0
    seen = []
    while slow.poll(200):
        seen.append(int.from_bytes(slow.recv_multipart()[1], "big"))
    assert 0 < len(seen) < 60


def test_publisher_without_subscribers_drops_messages(make: Make) -> None:
    publisher = make("tcp://127.0.0.1:*", queue_messages=2)
    for _ in range(100):
        publisher.send(b"a", b"x")
    assert publisher.slow_subscribers == 0


@pytest.mark.parametrize(
    ("endpoint", "named"),
    [
        ("127.0.0.1:5559", "is not an endpoint; write tcp://127.0.0.1:5559"),
        ("tcp://127.0.0.1", "is not an endpoint"),
        ("tcp://203.0.113.7:5559", "cannot be used"),
        ("tcp://127.0.0.1:99999", "is not an endpoint"),
        ("ipc:///nowhere/at/all", "cannot be used"),
    ],
)
def test_publisher_rejects_invalid_endpoint(endpoint: str, named: str) -> None:
    with pytest.raises(InvalidSettings, match="--events: ") as raised:
        Publisher(endpoint)
    assert named in str(raised.value)


def test_publisher_rejects_port_in_use(make: Make) -> None:
    first = make("tcp://127.0.0.1:*")
    with pytest.raises(InvalidSettings, match="Address already in use"):
        Publisher(first.endpoint)


def test_publisher_without_pyzmq_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "zmq", None)
    with pytest.raises(InvalidSettings, match=r"pip install 'kvtier\[events\]'"):
        Publisher("tcp://127.0.0.1:*")
