import asyncio
import datetime as dt
import socket
import ssl
from pathlib import Path

from kvtier.router.epp.certificates import self_signed
from kvtier.router.replica.connection import unsent_bytes
from tests.router.route.routers import run, until


def test_unsent_bytes_include_kernel_buffer() -> None:
    async def test() -> None:
        near, far = socket.socketpair()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
        transport.write(b"x" * 1000)
        await until(lambda: not transport.get_write_buffer_size(), "the kernel taking the bytes")
        assert unsent_bytes(transport) >= 1000
        far.recv(1000)
        assert unsent_bytes(transport) == 0
        transport.write(b"x" * 1000)
        transport.abort()
        assert unsent_bytes(transport) == 0
        far.close()

    run(test())


def test_unsent_bytes_with_tls(tmp_path: Path) -> None:
    class Deaf(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.append(transport)
            transport.pause_reading()  # type: ignore[attr-defined]

    made: list[asyncio.BaseTransport] = []
    pair = self_signed(dt.datetime.now(dt.UTC))
    (tmp_path / "both.pem").write_bytes(pair.key + pair.certificate)
    server_tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server_tls.load_cert_chain(tmp_path / "both.pem")
    client_tls = ssl.create_default_context()
    client_tls.check_hostname = False
    client_tls.verify_mode = ssl.CERT_NONE

    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with await loop.create_server(Deaf, "127.0.0.1", 0, ssl=server_tls) as server:
            port = server.sockets[0].getsockname()[1]
            transport, _ = await loop.create_connection(
                asyncio.Protocol, "127.0.0.1", port, ssl=client_tls
            )
            transport.write(b"x" * (16 << 20))
            await until(lambda: made, "the server accepting the connection")
            assert unsent_bytes(transport) > 0
            transport.abort()
            made[0].abort()  # type: ignore[attr-defined]

    run(test())
