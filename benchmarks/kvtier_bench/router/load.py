"""The load generator: clients that ask again as soon as they are answered, and check every byte.

It runs in a process of its own. `python -m kvtier_bench.router.load` reads a LoadOrder from
standard input and prints a LoadOutcome, each as one line of JSON. With idle streams it prints an
outcome once all of them are open, holds them until it reads another line, and prints an outcome
again.
"""

import asyncio
import statistics
import sys
from typing import Final, Literal, cast

import msgspec

from kvtier.clock import perf_s
from kvtier_bench.router import answers
from kvtier_bench.router.replica import content_length, run_in_loop

_IDLE_TIMEOUT_S: Final = 120.0
_OPENING: Final = 64
"""The number of idle streams that are opened at a time."""


class LoadOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The load to generate."""

    port: int
    kind: Literal["whole", "chunks", "idle"]
    clients: int
    seconds: float = 0.0
    """The duration; not used for idle streams."""
    first: int = 0
    """The number of the first request, different for each load so that no prompt repeats."""


class LoadOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The results of a load, with latencies in seconds."""

    requests: int
    wrong: int
    """The number of answers that differ from the expected bytes."""
    failed: int
    """The number of connections that were refused or broke, and of answers with an error status."""
    seconds: float
    p50_s: float = 0.0
    p99_s: float = 0.0
    first_p50_s: float = 0.0
    """The median time to the first byte of the body."""
    complaint: str = ""
    """The start of the first wrong answer."""


class AnswerParser:
    """An incremental parser of one HTTP answer, chunked or with a length."""

    def __init__(self) -> None:
        self.status = 0
        self.body = bytearray()
        self.done = False
        self._raw = bytearray()
        self._chunked = False
        self._left = -1
        """Length of the chunk or of the body; -1 while a head or the size of a chunk is next."""

    def feed(self, data: bytes) -> None:
        """Parse the next bytes. Raises ValueError for invalid HTTP."""
        self._raw += data
        while self._raw and not self.done and self._advance():
            pass

    def _advance(self) -> bool:
        if not self.status:
            return self._head()
        if not self._chunked:
            self.body += self._raw
            self._raw.clear()
            self.done = len(self.body) >= self._left
            return False
        if self._left < 0:
            return self._size()
        if len(self._raw) < self._left + 2:
            return False
        self.body += self._raw[: self._left]
        del self._raw[: self._left + 2]
        self.done = self._left == 0
        self._left = -1
        return True

    def _head(self) -> bool:
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._raw[:end])
        del self._raw[: end + 4]
        self.status = int(head.split(b" ", 2)[1])
        self._chunked = b"transfer-encoding: chunked" in head.lower()
        if not self._chunked:
            self._left = content_length(head)
            self.done = self._left == 0
        return True

    def _size(self) -> bool:
        end = self._raw.find(b"\r\n")
        if end < 0:
            return False
        self._left = int(self._raw[:end].split(b";")[0], 16)
        del self._raw[: end + 2]
        return True


class LoadTally:
    """The answers and errors that all clients of an order have seen."""

    def __init__(self, order: LoadOrder) -> None:
        self.order = order
        self.number = order.first
        self.took_s: list[float] = []
        self.first_s: list[float] = []
        self.wrong = self.failed = 0
        self.complaint = ""

    def next(self) -> int:
        """Return the number of the next request."""
        self.number += 1
        return self.number

    def judge(self, number: int, answer: AnswerParser) -> None:
        """Compare a complete answer with the expected one, and count it."""
        found = answers.make_mark(number)
        expected = (
            answers.whole_answer(found)
            if self.order.kind == "whole"
            else answers.stream_body(found)
        )
        if answer.status != 200:
            self.failed += 1
        elif answer.body != expected:
            self.wrong += 1
        else:
            return
        if not self.complaint:
            self.complaint = f"{answer.status} {bytes(answer.body[:200])!r}"


class Client(asyncio.Protocol):
    """A connection that sends one request after another until its time is up."""

    def __init__(self, tally: LoadTally, until_s: float) -> None:
        self._tally = tally
        self._until_s = until_s
        self.ended = asyncio.get_running_loop().create_future()
        self._stream = "" if tally.order.kind == "whole" else tally.order.kind
        self.heard = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        # uvloop's transports do not inherit from asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        self._number = self._tally.next()
        self._answer = AnswerParser()
        self._first_s = 0.0
        self._asked_s = perf_s()
        self._transport.write(answers.make_request(self._number, stream=self._stream))

    def data_received(self, data: bytes) -> None:
        """Parse the answer; at its end, judge it and send the next request."""
        answer = self._answer
        try:
            answer.feed(data)
        except (ValueError, IndexError):
            self._tally.wrong += 1
            self._transport.abort()
            return
        if answer.body and not self._first_s:
            self._first_s = perf_s()
            self.heard = answer.status == 200
        if answer.done:
            self._end(answer)

    def _end(self, answer: AnswerParser) -> None:
        now_s = perf_s()
        self._tally.took_s.append(now_s - self._asked_s)
        self._tally.first_s.append(self._first_s - self._asked_s)
        self._tally.judge(self._number, answer)
        if now_s >= self._until_s:
            self.close()
        else:
            self._ask()

    def close(self) -> None:
        """Close the connection without counting an error."""
        if not self.ended.done():
            self.ended.set_result(None)
        self._transport.close()

    def connection_lost(self, reason: Exception | None) -> None:
        """Count a failure, unless this side closed the connection."""
        if not self.ended.done():
            self._tally.failed += 1
            self.ended.set_result(None)


async def ask(order: LoadOrder) -> LoadOutcome:
    """Run the clients for `order.seconds`, each with one request in flight."""
    tally = LoadTally(order)
    began_s = perf_s()
    clients = await _connect(tally, order.clients, began_s + order.seconds)
    await asyncio.gather(*(client.ended for client in clients))
    return _outcome(tally, perf_s() - began_s)


async def hold(order: LoadOrder) -> None:
    """Hold idle streams open until a line arrives on standard input; print an outcome twice."""
    tally = LoadTally(order)
    began_s = perf_s()
    clients: list[Client] = []
    while len(clients) < order.clients and not tally.failed:
        more = min(_OPENING, order.clients - len(clients))
        clients += await _connect(tally, more, began_s)
        while not all(client.heard or client.ended.done() for client in clients[-_OPENING:]):
            if perf_s() - began_s > _IDLE_TIMEOUT_S:
                tally.failed += 1
                break
            await asyncio.sleep(0.005)
    _tell(_outcome(tally, perf_s() - began_s, sum(client.heard for client in clients)))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.readline)
    _tell(_outcome(tally, perf_s() - began_s, sum(client.heard for client in clients)))
    for client in clients:
        client.close()


async def _connect(tally: LoadTally, count: int, until_s: float) -> list[Client]:
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(count):
        try:
            made = await loop.create_connection(
                lambda: Client(tally, until_s), "127.0.0.1", tally.order.port
            )
        except OSError as error:
            tally.failed += 1
            tally.complaint = tally.complaint or str(error)
            continue
        clients.append(made[1])
    return clients


def _outcome(tally: LoadTally, seconds: float, requests: int | None = None) -> LoadOutcome:
    took = sorted(tally.took_s) or [0.0]
    return LoadOutcome(
        requests=len(tally.took_s) if requests is None else requests,
        wrong=tally.wrong,
        failed=tally.failed,
        seconds=seconds,
        p50_s=statistics.median(took),
        p99_s=took[min(len(took) - 1, len(took) * 99 // 100)],
        first_p50_s=statistics.median(tally.first_s or [0.0]),
        complaint=tally.complaint,
    )


def _tell(outcome: LoadOutcome) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(outcome) + b"\n")
    sys.stdout.buffer.flush()


async def _obey(order: LoadOrder) -> None:
    if order.kind == "idle":
        await hold(order)
    else:
        _tell(await ask(order))


if __name__ == "__main__":
    run_in_loop(_obey(msgspec.json.decode(sys.stdin.buffer.readline(), type=LoadOrder)))
