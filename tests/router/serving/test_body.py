import asyncio
import json

import pytest

from kvtier.router.serving.body import look
from kvtier.router.serving.refusals import Refusal
from tests.router.http.routers import run, stand


def test_what_choosing_needs_is_read() -> None:
    asked = look(b'{"model":"m","max_tokens":7,"priority":-2,"messages":[{}]}', "application/json")
    assert (asked.model, asked.max_tokens, asked.priority) == ("m", 7, -2)
    assert look(b'{"model":"m","max_completion_tokens":5,"max_tokens":7}', "").max_tokens == 5
    assert look(b'{"model":"m","max_output_tokens":9}', "").max_tokens == 9


@pytest.mark.parametrize("value", ["true", '"7"', "null", "1e3", "-5", "9999999999", "{}"])
def test_numbers_that_are_none_are_left_to_the_engine(value: str) -> None:
    assert look(f'{{"model":"m","max_tokens":{value}}}'.encode(), "").max_tokens in (0, 1)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"mod\\u0065l":"b"}',
        b'{"x":{"model":"a"},"model":"b"}',
        b'{"model":"\\u0062"}',
        b'{"model":"a","x":"\\"model\\":\\"c\\"","mod\\u0065l":"b"}',
    ],
)
def test_a_body_is_read_as_the_engine_will_read_it(body: bytes) -> None:
    assert look(body, "").model == json.loads(body)["model"] == "b"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"[]", "cannot be read"),
        (b"null", "cannot be read"),
        (b"{}", "names no model"),
        (b'{"model":null}', "names no model"),
        (b'{"model":""}', "has to be a name"),
        (b'{"model":5}', "has to be a name"),
        (b'{"model":["m"]}', "has to be a name"),
        (b'{"model":"m"} {}', "cannot be read"),
        (b'{"model":"m","x":"\xff"}', "not UTF-8: invalid start byte"),
        (b'\xef\xbb\xbf{"model":"m"}', "cannot be read"),
        ('{"model":"m"}'.encode("utf-16"), "cannot be read"),
        (b'{"model":"m","x":' + b"[" * 200_000, "nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(Refusal) as caught:
        look(body, "application/json")
    assert caught.value.status == 400
    assert said in str(caught.value)


def form(*models: str) -> bytes:
    parts = [f'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n{m}\r\n' for m in models]
    audio = '--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nRIFF\xff\r\n'
    return "".join([audio, *parts, "--b--\r\n"]).encode("latin-1")


def test_a_form_names_its_model_once() -> None:
    assert look(form("whisper"), "multipart/form-data; boundary=b").model == "whisper"
    assert look(form("whisper"), 'Multipart/Form-Data; boundary="b"').model == "whisper"
    for body, kind in (
        (form(), "multipart/form-data; boundary=b"),
        (form("a", "b"), "multipart/form-data; boundary=b"),
        (form("a"), "multipart/form-data"),
        (form("a"), "multipart/form-data; boundary=other"),
    ):
        with pytest.raises(Refusal):
            look(body, kind)


def test_a_body_over_the_limit_is_refused_before_it_is_read_and_while_it_is() -> None:
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


def test_a_large_body_within_the_limit_arrives_as_it_was() -> None:
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


def test_a_body_that_does_not_arrive_is_not_waited_for_for_ever() -> None:
    async def test() -> None:
        async with stand(body_timeout=0.1) as at:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n"
            reader, writer = await asyncio.open_connection("127.0.0.1", at.router.port)
            writer.write(head + b"{")
            assert (await reader.readline()).startswith(b"HTTP/1.1 408 ")
            assert b"did not arrive within 0.1 s" in await reader.readuntil(b"}}")
            writer.close()

    run(test())


def test_other_expectations_and_compressed_bodies_are_refused() -> None:
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
