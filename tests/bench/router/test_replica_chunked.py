import asyncio
import json

from kvtier_bench.router import answers
from kvtier_bench.router.replica import ChunkedStubReplica, unchunked


def test_unchunked_joins_chunks_and_leaves_what_follows() -> None:
    assert unchunked(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\nnext") == (b"abcde", 24)
    assert unchunked(b"0\r\n\r\n") == (b"", 5)
    for part in (b"", b"3", b"3\r\nab", b"3\r\nabc\r\n", b"0\r\n"):
        assert unchunked(part) is None


def test_chunked_and_sized_requests_get_the_same_answer_in_any_pieces() -> None:
    async def ask(request: bytes, step: int) -> bytes:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(ChunkedStubReplica, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for at in range(0, len(request), step):
            writer.write(request[at : at + step])
            await writer.drain()
            await asyncio.sleep(0)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        writer.close()
        server.close()
        return body

    plain = answers.make_request(7)
    head, _, body = plain.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"content-length")]
    chunked = b"\r\n".join([*lines, b"transfer-encoding: chunked"]) + b"\r\n\r\n"
    chunked += b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (9, body[:9], len(body) - 9, body[9:])
    expected = answers.whole_answer(answers.make_mark(7))
    for step in (len(chunked), 700):
        assert asyncio.run(ask(plain, len(plain))) == expected
        assert asyncio.run(ask(chunked, step)) == expected
    assert json.loads(expected)
