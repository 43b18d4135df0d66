"""A real gRPC client against the listener."""

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from kvtier.errors import InvalidSettings
from kvtier.router.epp import certificates
from kvtier.router.epp.h2 import frames
from kvtier.router.epp.h2.limits import H2Limits, MemoryBudget
from kvtier.router.epp.h2.listener import GrpcListener
from tests.router.epp.h2.clients import BEGIN, Echo, parsed

LARGE = ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)


class Served:
    def __init__(self, listener: GrpcListener, port: int, channel: grpc.aio.Channel) -> None:
        self.listener = listener
        self.port = port
        self.channel = channel
        self.handlers: list[Echo] = []

    def echo(self, timeout_s: float | None = None) -> grpc.aio.StreamStreamCall:
        return self.channel.stream_stream("/echo")(timeout=timeout_s)

    async def closed(self) -> None:
        async with asyncio.timeout(10):
            while not all("closed" in handler.said for handler in self.handlers):
                await asyncio.sleep(0.001)


@asynccontextmanager
async def served(*, secure: bool = False, limits: H2Limits | None = None) -> AsyncIterator[Served]:
    handlers: list[Echo] = []

    def echo(call: object) -> Echo:
        handlers.append(Echo(call))  # type: ignore[arg-type]
        return handlers[-1]

    limits = limits or H2Limits(max_message_bytes=32 << 20)
    listener = GrpcListener({b"/echo": echo}, limits, MemoryBudget(1 << 30))
    pair = certificates.self_signed(dt.datetime.now(dt.UTC))
    port = listener.bind("127.0.0.1", 0, certificates.context(pair) if secure else None)
    await listener.start()
    if secure:
        trusted = grpc.ssl_channel_credentials(pair.certificate)
        channel = grpc.aio.secure_channel(f"localhost:{port}", trusted, options=LARGE)
    else:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=LARGE)
    async with channel:
        found = Served(listener, port, channel)
        found.handlers = handlers
        yield found
    await listener.stop(0)


def run(
    test: Callable[[Served], Awaitable[None]],
    *,
    secure: bool = False,
    limits: H2Limits | None = None,
) -> None:
    async def go() -> None:
        async with served(secure=secure, limits=limits) as found:
            await test(found)

    asyncio.run(go())


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("size", [0, 1, 65_535, 1_000_000, 20_000_000])
def test_messages_of_any_size_are_echoed(secure: bool, size: int) -> None:
    async def test(found: Served) -> None:
        call = found.echo()
        for _ in range(2):
            await call.write(b"x" * size)
            assert await call.read() == b"x" * size
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK
        await found.closed()

    run(test, secure=secure)


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_concurrent_calls_are_independent(secure: bool) -> None:
    async def test(found: Served) -> None:
        async def one(number: int) -> None:
            call = found.echo()
            for round_ in range(5):
                content = b"%d/%d" % (number, round_) * 3000
                await call.write(content)
                assert await call.read() == content
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.OK

        async with asyncio.timeout(60):
            await asyncio.gather(*(one(number) for number in range(100)))

    run(test, secure=secure)


def test_unary_call_is_answered() -> None:
    async def test(found: Served) -> None:
        assert await found.channel.unary_unary("/echo")(b"hi") == b"hi"
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await found.channel.unary_unary("/nobody")(b"hi")
        assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED

    run(test)


def test_canceled_and_expired_calls_close_their_handler() -> None:
    async def test(found: Served) -> None:
        call = found.echo()
        await call.write(b"x")
        assert await call.read() == b"x"
        call.cancel()
        late = found.echo(timeout_s=0.05)
        assert await late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await found.closed()

    run(test)


def test_compressed_message_is_refused() -> None:
    async def test(found: Served) -> None:
        call = found.channel.unary_unary("/echo")(b"x" * 10_000, compression=grpc.Compression.Gzip)
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED

    run(test)


def test_message_over_limit_is_refused() -> None:
    async def test(found: Served) -> None:
        call = found.channel.unary_unary("/echo")(b"x" * 10_000)
        assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(test, limits=H2Limits(max_message_bytes=9_999))


def test_calls_over_stream_limit_are_retried_by_client() -> None:
    async def test(found: Served) -> None:
        answers = [found.channel.unary_unary("/echo")(b"%d" % n) for n in range(50)]
        assert await asyncio.gather(*answers) == [b"%d" % n for n in range(50)]

    run(test, limits=H2Limits(max_streams=2))


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_stop_lets_calls_end_and_refuses_new_ones(secure: bool) -> None:
    async def test(found: Served) -> None:
        call = found.echo()
        await call.write(b"before")
        assert await call.read() == b"before"
        stopping = asyncio.create_task(found.listener.stop(20))
        async with asyncio.timeout(10):
            while "stopping" not in found.handlers[0].said:
                await asyncio.sleep(0.001)
        await call.write(b"after")
        assert await call.read() == b"after"
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        async with asyncio.timeout(10):
            await stopping
        assert await found.echo(timeout_s=5).code() is grpc.StatusCode.UNAVAILABLE

    run(test, secure=secure)


def test_stop_aborts_calls_after_grace() -> None:
    async def test(found: Served) -> None:
        call = found.echo()
        await call.write(b"x")
        await call.read()
        with socket.create_connection(("127.0.0.1", found.port)):
            async with asyncio.timeout(10):
                await found.listener.stop(0.05)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert await call.details() == "the server has stopped"
        await found.closed()

    run(test)


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_connection_whose_handshake_ends_during_stop_is_closed() -> None:
    async def test(found: Served) -> None:
        call = found.echo()
        await call.write(b"x")
        await call.read()
        late = socket.create_connection(("127.0.0.1", found.port))
        late.setblocking(False)
        # Connections are accepted in order: once this one is served, `late` has been accepted.
        _, next_writer = await asyncio.open_connection(
            "127.0.0.1", found.port, ssl=unverified(), server_hostname="x"
        )
        stopping = asyncio.create_task(found.listener.stop(20))
        async with asyncio.timeout(10):
            while "stopping" not in found.handlers[-1].said:
                await asyncio.sleep(0.001)
            reader, writer = await asyncio.open_connection(
                sock=late, ssl=unverified(), server_hostname="x"
            )
            kinds = [frame[0] for frame in parsed(await reader.read())]
        assert kinds[-1] == frames.GOAWAY
        writer.close()
        next_writer.close()
        await call.done_writing()
        async with asyncio.timeout(10):
            await stopping

    run(test, secure=True, limits=H2Limits(close_s=0.5))


def test_stop_does_not_wait_for_tls_client_that_never_closes() -> None:
    async def test(found: Served) -> None:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", found.port, ssl=unverified(), server_hostname="x"
        )
        received = frames.FrameReader(1 << 24)
        list(received.feed(frames.PREFACE))

        async def payload_of(kind: int, flags: int = 0) -> bytes:
            while True:
                for frame in received.feed(await reader.read(frames.HEAD_BYTES)):
                    if frame[:2] == (kind, flags):
                        return frame[3]

        writer.write(BEGIN)
        async with asyncio.timeout(10):
            await payload_of(frames.SETTINGS, frames.ACK)
            stopping = asyncio.create_task(found.listener.stop(60))
            answer = await payload_of(frames.PING)
            writer.write(frames.frame(frames.PING, frames.ACK, 0, answer))
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await stopping
        writer.transport.abort()

    run(test, secure=True, limits=H2Limits(close_s=0.05))


def test_connection_without_preface_is_closed() -> None:
    async def test(found: Served) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", found.port)
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()

    run(test, limits=H2Limits(begin_s=0.05))
    run(test, limits=H2Limits(begin_s=0.05), secure=True)


def test_bind_reports_taken_port_and_unknown_host() -> None:
    async def test(found: Served) -> None:
        second = GrpcListener({}, H2Limits(), MemoryBudget(0))
        with pytest.raises(InvalidSettings, match=f"127.0.0.1:{found.port} cannot be listened on"):
            second.bind("127.0.0.1", found.port, None)
        with pytest.raises(InvalidSettings, match="cannot be listened on"):
            second.bind("no.such.host.invalid", 1, None)
        await second.stop(0)

    run(test)


def test_bind_accepts_ipv6() -> None:
    async def go() -> None:
        listener = GrpcListener({}, H2Limits(), MemoryBudget(0))
        with contextlib.suppress(InvalidSettings):  # the machine has no IPv6
            assert listener.bind("::1", 0, None) > 0
        await listener.stop(0)

    asyncio.run(go())
