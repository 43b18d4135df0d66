import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from kvtier.clock import VirtualClock
from kvtier.errors import InvalidSettings, Unavailable
from kvtier.router.learn import sources as module
from kvtier.router.learn.prompts import ChatPrompt
from kvtier.router.learn.sources import EngineSource, LocalSource
from tests.router.learn.folder import make_folder

CHAT = ChatPrompt(messages=[{"role": "user", "content": "the fox"}])
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def test_local_source_tokenizes_prompts_and_chats(tmp_path) -> None:
    source = LocalSource(make_folder(tmp_path))
    library = source._tokenizer._library

    async def run() -> None:
        tokens = await source.chat(CHAT, "m")
        text = "<|im_start|>user\nthe fox<|im_end|>\n<|im_start|>assistant\n"
        assert tokens.tolist() == library.encode(text, add_special_tokens=False).ids
        tokens = await source.completion("the fox", "m", add_special_tokens=True)
        assert tokens.tolist() == library.encode("the fox").ids
        for refused in (source.completion("\ud800", "m", add_special_tokens=False),):
            with pytest.raises(Unavailable):
                await refused

    asyncio.run(run())
    source.close()
    source.close()


@pytest.mark.parametrize("template", [None, "{{ raise_exception('never') }}"])
def test_local_source_without_template_has_no_chats(tmp_path, template) -> None:
    source = LocalSource(make_folder(tmp_path, template))

    async def run() -> None:
        assert len(await source.completion("the fox", "m", add_special_tokens=False))
        with pytest.raises(Unavailable):
            await source.chat(CHAT, "m")

    asyncio.run(run())
    source.close()


def test_local_source_of_invalid_folder_is_an_error(tmp_path) -> None:
    with pytest.raises(InvalidSettings):
        LocalSource(tmp_path / "nowhere")


def served(answer: Answer, use: Callable[[EngineSource], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        app = web.Application()
        app.router.add_post("/tokenize", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        try:
            async with aiohttp.ClientSession() as session:
                return await use(EngineSource(session, f"http://127.0.0.1:{port}/", **options))
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def test_engine_source_requests_each_prompt_once() -> None:
    asked: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        asked.append(body)
        return web.json_response({"count": 2, "max_model_len": 9, "tokens": [1, len(asked)]})

    async def use(source: EngineSource) -> list[list[int]]:
        calls = [
            await source.completion("a", "m", add_special_tokens=True),
            await source.completion("a", "m", add_special_tokens=True),
            await source.completion("a", "m", add_special_tokens=False),
            await source.chat(CHAT, "m"),
            await source.chat(ChatPrompt(CHAT.messages, [{"x": 1}], {"k": 1}, False), "m"),
        ]
        return [tokens.tolist() for tokens in calls]

    assert served(answer, use) == [[1, 1], [1, 1], [1, 2], [1, 3], [1, 4]]
    assert asked[0] == {"model": "m", "prompt": "a", "add_special_tokens": True}
    assert asked[2]["messages"] == CHAT.messages
    assert (asked[3]["tools"], asked[3]["chat_template_kwargs"]) == ([{"x": 1}], {"k": 1})


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"tokens": [-1]}',
        b'{"tokens": "x"}',
        b"no",
        b'{"tokens": [4294967296]}',
        b'{"x":' + b"[" * 200_000,
    ],
)
def test_engine_source_with_malformed_response_is_unavailable(body) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body)

    async def use(source: EngineSource) -> None:
        with pytest.raises(Unavailable):
            await source.chat(CHAT, "m")
        assert source._cache.size_bytes == 0

    served(answer, use)


@pytest.mark.parametrize("kind", ["hangs", "endless", "refuses"])
def test_engine_source_with_missing_or_endless_response_is_unavailable(kind, monkeypatch) -> None:
    monkeypatch.setattr(module, "ANSWER_MAX", 10_000)

    async def answer(request: web.Request) -> web.StreamResponse:
        if kind == "refuses":
            return web.Response(status=400)
        if kind == "hangs":
            await asyncio.sleep(30)
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 4096)

    async def use(source: EngineSource) -> None:
        with pytest.raises(Unavailable):
            await source.completion("a", "m", add_special_tokens=True)

    served(answer, use, timeout_s=0.3 if kind == "hangs" else 10.0)


def test_engine_source_rests_after_timeout() -> None:
    asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.sleep(30)
        return web.Response(status=400) if asked == 2 else web.json_response({"tokens": [1]})

    clock = VirtualClock()

    async def use(source: EngineSource) -> None:
        for _ in range(3):
            with pytest.raises(Unavailable):
                await source.chat(CHAT, "m")
        assert asked == 1
        clock.advance(module.REST_S)
        with pytest.raises(Unavailable):  # a rejected request is no reason to rest
            await source.chat(CHAT, "m")
        assert len(await source.chat(CHAT, "m")) == 1

    served(answer, use, timeout_s=0.2, clock=clock)


def test_token_cache_of_engine_source_is_bounded() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"tokens": [1] * 100})

    async def use(source: EngineSource) -> None:
        for number in range(10):
            await source.completion(str(number), "m", add_special_tokens=True)
        assert len(source._cache) == 3
        assert source._cache.size_bytes == 1800

    served(answer, use, cached_bytes=2000)


def test_unreachable_engine_source_is_unavailable() -> None:
    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(Unavailable):
                await EngineSource(session, "http://127.0.0.1:1").chat(CHAT, "m")

    asyncio.run(run())
