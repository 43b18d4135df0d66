import asyncio
import json
import re

import pytest

from kvtier.router.route import connection
from tests.router.route.routers import run, stand, until

BODY = b'{"model":"m","prompt":"x"}'
REQUEST = (
    b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
)


async def said(port: int, sent: bytes) -> bytes:
    """Return everything the router sends until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\nnonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost h\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: h\r\nA b: c\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n"
        b"Content-Length: 6\r\n\r\nhello",
        b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"ffffffffffffffffff\r\n",
        b"GET /health HTTP/1.1\r\nHost: h\r\n folded: x\r\n\r\n",
        b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(REQUEST) + REQUEST,
        b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
        b"Transfer-Encoding: identity\r\n\r\n" + REQUEST,
    ],
)
def test_invalid_http_is_answered_with_json_error_and_close(sent: bytes) -> None:
    async def test() -> None:
        async with stand() as at:
            answer = await said(at.router.port, sent)
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.partition(b" ")[2].startswith(b"400 "), answer
            assert json.loads(body)["error"]["type"] == "invalid_request_error"
            assert not at.replicas[0].requests
            async with at.post() as after:
                assert after.status == 200

    run(test())


def test_pipelined_requests_are_answered_in_order() -> None:
    async def test() -> None:
        async with stand() as at:
            last = REQUEST.replace(b"Host: h", b"Host: h\r\nConnection: close")
            answer = await said(at.router.port, REQUEST + REQUEST + last)
            assert answer.count(b"HTTP/1.1 200 OK") == 3
            assert len(at.replicas[0].bodies) == 3
            assert set(at.replicas[0].bodies) == {BODY}

    run(test())


@pytest.mark.parametrize(
    "offer",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        b"Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
    ],
)
def test_declined_upgrade_gets_plain_response_and_keeps_body(offer: bytes) -> None:
    async def test() -> None:
        async with stand() as at:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\n" + offer
            chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
            sent = (
                head + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
                head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks,
                head + b"Content-Length: %d\r\n\r\n" % len(REQUEST) + REQUEST,
                REQUEST.replace(b"Host: h", b"Host: h\r\nConnection: close"),
            )
            answer = await said(at.router.port, b"".join(sent))
            statuses = re.findall(rb"HTTP/1\.1 (\d+)", answer)
            assert statuses == [b"200", b"200", b"400", b"200"], "the third body is not JSON"
            (a,) = at.replicas
            assert a.bodies == [BODY] * 3
            assert not {"Upgrade", "HTTP2-Settings"} & set().union(
                *(asked.headers for asked in a.requests)
            )

    run(test())


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/completions HTTP/1.1\r\n", b"POST /v1/completions HTTP/1.1\r\nHost:"]
)
def test_incomplete_head_times_out(sent: bytes) -> None:
    async def test() -> None:
        async with stand(head_timeout=0.1) as at:
            assert await said(at.router.port, sent) == b""
            reader, writer = await asyncio.open_connection("127.0.0.1", at.router.port)
            writer.write(REQUEST)
            await reader.readuntil(b"}")
            writer.write(sent or b"P")
            async with asyncio.timeout(10):
                assert await reader.read() == b""
            writer.close()

    run(test())


def test_idle_connection_is_closed_and_waiting_one_is_not() -> None:
    async def test() -> None:
        async with stand(head_timeout=0.05, keep_alive=0.2) as at:
            at.replicas[0].first_delay_s = 0.5
            reader, writer = await asyncio.open_connection("127.0.0.1", at.router.port)
            writer.write(REQUEST)
            async with asyncio.timeout(10):
                answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 200 OK")
            writer.close()

    run(test())


def test_client_of_http_1_0_is_served() -> None:
    async def test() -> None:
        async with stand() as at:
            body = BODY.replace(b"}", b',"stream":true}')
            head = b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body)
            answer = await said(at.router.port, head + body)
            # The version is the router's own; the response ends with the connection.
            assert answer.startswith(b"HTTP/1.1 200 OK")
            assert b"connection: close\r\n" in answer
            assert answer.endswith(b"data: [DONE]\n\n")
            assert b"chunked" not in answer

    run(test())


def test_refusal_is_half_closed_while_rest_of_body_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "LINGER_S", 60.0)

    async def test() -> None:
        async with stand(keys=["secret"]) as at:
            head = REQUEST.partition(b"\r\n\r\n")[0].replace(b"%d" % len(BODY), b"1000000")
            reader, writer = await asyncio.open_connection("127.0.0.1", at.router.port)
            writer.write(head + b"\r\n\r\n" + BODY)
            async with asyncio.timeout(10):
                answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"connection: close\r\n" in answer
            writer.write(b"x" * 100_000)
            await writer.drain()
            writer.close()

    run(test())


def test_many_pipelined_requests_are_read_as_they_are_answered() -> None:
    async def test() -> None:
        async with stand() as at:
            at.replicas[0].held.clear()
            _, writer = await asyncio.open_connection("127.0.0.1", at.router.port)
            padded = REQUEST.replace(b"Host: h", b"Host: h\r\nX: " + b"x" * 2000)
            writer.write(padded * 10_000)
            await until(lambda: at.replicas[0].requests, "the first request arrives")
            left, before = writer.transport.get_write_buffer_size(), -1
            while left != before:
                await asyncio.sleep(0.3)
                left, before = writer.transport.get_write_buffer_size(), left
            assert left > 0, "the rest is not read yet"
            writer.transport.abort()
            at.replicas[0].held.set()

    run(test())


def test_many_pipelined_requests_are_all_answered() -> None:
    async def test() -> None:
        async with stand() as at:
            last = b"GET /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
            answer = await said(
                at.router.port, b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n" * 3000 + last
            )
            assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 200 OK") == 3001

    run(test())


def test_disconnect_with_pipelined_request_cancels_current_one() -> None:
    async def test() -> None:
        async with stand() as at:
            at.replicas[0].held.clear()
            _, writer = await asyncio.open_connection("127.0.0.1", at.router.port)
            writer.write(REQUEST + REQUEST)
            await until(lambda: at.replicas[0].requests, "the first request arrives")
            writer.close()
            await until(lambda: at.replicas[0].cancelled == 1, "the replica is cancelled")
            at.replicas[0].held.set()

    run(test())
