import asyncio
import contextlib
import json
import subprocess

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.router.replicas import replicas
from tests.router.route.routers import router_over, run, stand, until


def test_proxy_answers_health_models_and_metrics_itself() -> None:
    async def test() -> None:
        async with stand("m", "n", count=2) as at:
            async with at.client.get(at.url + "/health") as answer:
                assert await answer.json() == {"status": "ok", "replicas": 2}
            async with at.client.get(at.url + "/livez") as answer:
                assert answer.status == 200
            async with at.client.get(at.url + "/v1/models") as answer:
                listed = await answer.json()
                assert [card["id"] for card in listed["data"]] == ["m", "n"]
            async with at.client.get(at.url + "/v1/models/n") as answer:
                assert (await answer.json())["owned_by"] == "vllm"
            async with at.client.get(at.url + "/v1/models/x") as answer:
                assert answer.status == 404
            async with at.client.get(at.url + "/metrics") as answer:
                assert answer.headers["Content-Type"].startswith("text/plain")
                assert "kvtier_route_requests_total" in await answer.text()

    run(test())


def test_health_reflects_fleet() -> None:
    async def test() -> None:
        async with stand() as at:
            at.replicas[0].health_status = 500
            while True:
                async with at.client.get(at.url + "/health") as answer:
                    if answer.status == 503:
                        break
                await asyncio.sleep(0.01)
            async with at.client.get(at.url + "/livez") as answer:
                assert answer.status == 200
            async with at.post() as answer:
                assert answer.status == 503
                assert "/health returned status 500" in (await answer.json())["error"]["message"]

    run(test())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/sleep", 404),
        ("POST", "/v1/load_lora_adapter", 403),
        ("POST", "/v1/%6coad_lora_adapter", 403),
        ("POST", "/v1%2Fload_lora_adapter", 403),
        ("POST", "/v1/%2e%2e/sleep", 404),
        ("PUT", "/v1/completions", 404),
        ("GET", "/", 404),
        ("OPTIONS", "*", 404),
    ],
)
def test_unknown_path_is_refused(method: str, path: str, status: int) -> None:
    async def test() -> None:
        async with stand() as at:
            reader, writer = await asyncio.open_connection("127.0.0.1", at.router.port)
            writer.write(
                f"{method} {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode()
            )
            answer = await reader.read()
            writer.close()
            assert answer.split()[1] == str(status).encode(), answer
            assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"]
            assert not at.replicas[0].requests

    run(test())


def test_request_without_valid_key_is_unauthorized() -> None:
    async def test() -> None:
        async with stand(keys=["secret"]) as at:
            async with at.post() as answer:
                assert answer.status == 401
                assert (await answer.json())["error"]["code"] == "invalid_api_key"
                assert answer.headers["request-id"]
            async with at.client.get(at.url + "/v1/models") as answer:
                assert answer.status == 401
            for path in ("/health", "/livez", "/metrics"):
                async with at.client.get(at.url + path) as answer:
                    assert answer.status == 200
            async with at.post(headers={"Authorization": "Bearer secret"}) as answer:
                assert answer.status == 200
            assert len(at.replicas[0].requests) == 1

    run(test())


def test_outcome_is_counted_once() -> None:
    async def test() -> None:
        async with stand() as at:
            for _ in range(3):
                async with at.post():
                    pass
            async with at.post(model="x"):
                pass
            async with at.client.get(at.url + "/nowhere"):
                pass
            at.replicas[0].status = 500
            async with at.post():
                pass
            for outcome, count in (("ok", 3), ("refused", 1), ("failed", 1), ("cancelled", 0)):
                line = f'kvtier_route_requests_total{{outcome="{outcome}"}}'
                assert await at.metric(line) == count

    run(test())


def test_openai_client_works() -> None:
    async def test() -> None:
        async with (
            stand(keys=["secret"]) as at,
            openai.AsyncOpenAI(base_url=at.url + "/v1", api_key="secret", max_retries=0) as client,
        ):
            listed = await client.models.list()
            assert [model.id for model in listed.data] == ["m"]
            stream = await client.completions.create(model="m", prompt="hello", stream=True)
            texts = [event.choices[0].text async for event in stream]
            assert texts == [" hello"] * 4
            raw = await client.completions.with_raw_response.create(model="m", prompt="hello")
            assert raw.headers["target-pod"] == at.replicas[0].address
            with pytest.raises(openai.NotFoundError) as caught:
                await client.completions.create(model="none", prompt="hello")
            assert caught.value.code == "model_not_found"
            assert caught.value.request_id

    run(test())


def test_curl_works() -> None:
    async def test() -> None:
        async with stand() as at:
            command = (
                *("curl", "-sS", "-N", "-i", "-X", "POST", at.url + "/completions"),
                *("-H", "Content-Type: application/json"),
                *("-d", '{"model": "m", "prompt": "Explain.", "max_tokens": 10, "stream": true}'),
            )
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
            assert done.stdout.startswith(b"HTTP/1.1 200 OK")
            assert b"target-pod: " + at.replicas[0].address.encode() in done.stdout
            assert done.stdout.endswith(b"data: [DONE]\n\n")

    run(test())


_NAMES = st.sampled_from(
    [b"Content-Length", b"Transfer-Encoding", b"Connection", b"Host", b"Expect", b"Upgrade"]
)
_VALUES = st.sampled_from(
    [b"0", b"5", b"-1", b"5, 5", b"0x5", b"chunked", b"gzip, chunked", b"close", b"", b"websocket"]
) | st.binary(max_size=20)
_HEADERS = st.lists(st.tuples(_NAMES | st.binary(max_size=10), _VALUES), max_size=5)
_TARGETS = st.sampled_from(
    [b"/v1/completions", b"/v1/models", b"/v1/%ff", b"*", b"http://x/v1/completions", b"/%", b"//"]
) | st.binary(max_size=30)
_BODIES = st.sampled_from(
    [b"", b'{"model":"m"}', b'{"model":', b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"\xff" * 9]
) | st.binary(max_size=60)
_METHODS = st.sampled_from([b"POST", b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"CONNECT", b"X"])
_HEALTH = b"GET /livez HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


@st.composite
def _requests(draw: st.DrawFn) -> bytes:
    head = b" ".join((draw(_METHODS), draw(_TARGETS), b"HTTP/1.1")) + b"\r\n"
    for name, value in draw(_HEADERS):
        head += name + b": " + value + b"\r\n"
    return head + b"\r\n" + draw(_BODIES)


@given(sent=st.lists(_requests() | st.binary(max_size=100), min_size=1, max_size=6))
def test_router_survives_arbitrary_bytes(sent: list[bytes]) -> None:
    """Each input has its own connection; afterwards no load is left and requests still work."""

    async def test() -> None:
        async with (
            replicas() as made,
            router_over(made, head_timeout=2.0, body_timeout=2.0, keep_alive=2.0) as router,
        ):
            for piece in sent:
                reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
                writer.write(piece)
                answer = b""
                with contextlib.suppress(TimeoutError, ConnectionError):
                    async with asyncio.timeout(0.03):
                        while found := await reader.read(65536):
                            answer += found
                writer.close()
                assert not answer or answer.startswith(b"HTTP/"), answer
                assert b" 500 " not in answer.partition(b"\r\n")[0], (piece, answer)
            for request in made[0].requests:
                assert request.path.startswith("/v1/") or request.path == "/version"
            reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
            writer.write(_HEALTH)
            assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
            writer.close()
            await until(lambda: router.fleet.members[0].endpoint.in_flight == 0, "no load is left")

    run(test())
