import asyncio
import json

from tests.router.route.routers import run, stand
from tests.router.route.test_connection import BODY, REQUEST, said


def test_body_over_limit_is_refused_before_and_while_it_arrives() -> None:
    async def test() -> None:
        async with stand(max_body=1000) as at:
            url = at.url + "/v1/completions"
            async with at.client.post(url, data=b"x" * 1001) as answer:
                assert answer.status == 413

            async def pieces() -> object:
                for _ in range(100):
                    yield b"x" * 100

            async with at.client.post(url, data=pieces()) as answer:
                assert answer.status == 413
                assert (await answer.json())["error"]["code"] == "request_too_large"
            assert not at.replicas[0].requests
            async with at.post() as answer:
                assert answer.status == 200

    run(test())


def test_large_body_within_limit_arrives_unchanged() -> None:
    async def test() -> None:
        async with stand() as at:
            body = json.dumps({"model": "m", "prompt": "\u00e4" * 1_000_000}).encode()
            headers = {"Expect": "100-continue"}
            async with at.client.post(
                at.url + "/v1/completions", data=body, headers=headers
            ) as answer:
                assert answer.status == 200
            assert at.replicas[0].bodies == [body]

    run(test())


def test_body_that_does_not_arrive_times_out() -> None:
    async def test() -> None:
        async with stand(body_timeout=0.1) as at:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n"
            reader, writer = await asyncio.open_connection("127.0.0.1", at.router.port)
            writer.write(head + b"{")
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
            assert b"did not arrive within 0.1 s" in await reader.readuntil(b"}}")
            writer.close()

    run(test())


def test_unknown_expectation_and_compressed_body_are_refused() -> None:
    async def test() -> None:
        async with stand() as at:
            url = at.url + "/v1/completions"
            for headers, status in (
                ({"Expect": "tea"}, 417),
                ({"Content-Encoding": "gzip"}, 415),
            ):
                async with at.client.post(url, data=b"{}", headers=headers) as answer:
                    assert answer.status == status

    run(test())


def test_length_and_expectation_are_parsed_leniently() -> None:
    async def test() -> None:
        async with stand() as at:
            closing = REQUEST.replace(b"Host: h", b"Host: h\r\nConnection: close")
            zeros = closing.replace(b"Length: ", b"Length: " + b"0" * 5000)
            expecting = closing.replace(b"Host: h", b"Host: h\r\nExpect: 100-continue \t")
            for sent in (zeros, expecting):
                answer = await said(at.router.port, sent)
                assert answer.startswith(b"HTTP/1.1 200 OK"), answer
            assert at.replicas[0].bodies == [BODY] * 2

    run(test())


def test_expectation_is_ignored_in_http_1_0() -> None:
    async def test() -> None:
        async with stand() as at:
            for expected in (b"100-continue", b"tea"):
                head = REQUEST.replace(b"Host: h", b"Host: h\r\nExpect: " + expected)
                head = head.replace(b"HTTP/1.1", b"HTTP/1.0")
                reader, writer = await asyncio.open_connection("127.0.0.1", at.router.port)
                writer.write(head[:-1])
                await asyncio.sleep(0.02)
                writer.write(head[-1:])
                assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
                writer.close()

    run(test())
