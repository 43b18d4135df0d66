"""The socket that events leave through: ZeroMQ PUB, three parts a message, as vLLM's.

Why a file of its own: pyzmq is asked for only where events are. Sending never waits: each
subscriber has a queue of QUEUE_MESSAGES, and one whose queue is full loses messages until it
catches up, which its gaps in the sequence numbers tell it.

Invariants: sequence numbers of a topic count from 0 without gaps on this side; a subscriber
that was found too slow is counted.
"""

import re
from typing import Final

from kvtier.errors import InvalidSettings

QUEUE_MESSAGES: Final = 10_000
_LINGER_MS: Final = 1000
"""So long the last messages may take when the evictor ends."""
_SEQUENCE_BYTES: Final = 8
_CONNECT = "connect:"
_ENDPOINT = re.compile(r"tcp://[^\s/]+:(?:(?P<port>\d{1,5})|\*)|ipc://\S+")
_PORT_MAX: Final = 65_535


class Publisher:
    """Binds to an endpoint, or connects to it with `connect:` before. One thread."""

    def __init__(
        self, endpoint: str, queue_messages: int = QUEUE_MESSAGES, setting: str = "--events"
    ) -> None:
        """Raises InvalidSettings naming `setting` and the fix."""
        address = endpoint.removeprefix(_CONNECT)
        found = _ENDPOINT.fullmatch(address)
        if found is None or int(found["port"] or 0) > _PORT_MAX:
            raise InvalidSettings(
                f"{setting}: {endpoint!r} is no endpoint; write tcp://127.0.0.1:5559 or "
                "ipc:///run/kv-events to listen there, connect:tcp://router:5559 to call"
            )
        try:
            import zmq
        except ImportError as error:
            raise InvalidSettings(
                f"{setting}: sending needs the library pyzmq: pip install 'kvtier[events]'"
            ) from error
        self._zmq = zmq
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, queue_messages)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        self._sequences: dict[bytes, int] = {}
        self.slow_subscribers = 0
        """Times that one was found to have fallen behind."""
        try:
            if endpoint.startswith(_CONNECT):
                self._socket.connect(address)
            else:
                self._socket.bind(address)
        except zmq.ZMQError as error:
            self.close()
            raise InvalidSettings(
                f"{setting}: {endpoint} cannot be used ({error.strerror}); choose an address of "
                "this host and a free port, or write connect: before that of a subscriber"
            ) from error

    @property
    def endpoint(self) -> str:
        """What was bound or connected to last; tells the port where `*` was asked for."""
        return self._socket.getsockopt_string(self._zmq.LAST_ENDPOINT)

    def send(self, topic: bytes, payload: bytes) -> None:
        """Never waits. Nobody may be listening, which is nobody's fault."""
        sequence = self._sequences.get(topic, 0)
        self._sequences[topic] = sequence + 1
        parts = (topic, sequence.to_bytes(_SEQUENCE_BYTES, "big"), payload)
        if self._was_sent(parts):
            return
        self._socket.getsockopt(self._zmq.EVENTS)  # makes it look how far subscribers have come
        if self._was_sent(parts):
            return
        # Somebody's queue is full, and ZeroMQ refuses all of them to tell. So: without that one.
        self.slow_subscribers += 1
        self._socket.setsockopt(self._zmq.XPUB_NODROP, 0)
        self._socket.send_multipart(parts, self._zmq.NOBLOCK)
        self._socket.setsockopt(self._zmq.XPUB_NODROP, 1)

    def _was_sent(self, parts: tuple[bytes, bytes, bytes]) -> bool:
        """False, and sent to nobody, where a queue is full."""
        try:
            self._socket.send_multipart(parts, self._zmq.NOBLOCK)
        except self._zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Send what is queued, for a second at most. Idempotent."""
        self._socket.close()
        self._context.term()
