"""A replica that answers at once: `python quick.py PORT`.

It answers as soon as a request is complete, and with 404 under `/early` before any of the body has
arrived. It is faster than any engine, so that a gateway loses here whatever it could lose.
"""

import asyncio
import sys

import httptools

BODY = b'{"answer": "' + b"x" * 400 + b'"}'
MODELS = b'{"object": "list", "data": [{"id": "m", "object": "model"}]}'
EARLY = b"/early"


class Quick(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_headers_complete(self) -> None:
        if self.url == EARLY:
            self.answer(b"404 Not Found", BODY)

    def on_message_complete(self) -> None:
        if self.url != EARLY:
            self.answer(b"200 OK", MODELS if self.url == b"/v1/models" else BODY)

    def answer(self, status: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % (status, len(body)) + body)  # type: ignore[attr-defined]


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Quick, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
