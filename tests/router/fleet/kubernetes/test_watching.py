import asyncio
import json
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import kubernetes
import pytest
from aiohttp import web

from kvtier.errors import InvalidSettings
from kvtier.router.fleet.kubernetes import watching
from kvtier.router.fleet.kubernetes.watching import Object, Watch
from tests.router.fleet.kubernetes.cluster import (
    PODS,
    WINDOW_S,
    Answer,
    Cluster,
    answering,
    api,
    run,
)

GOOD = {"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "a"}}]}


def named(name: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "prod"}}


class Names:
    """The names of the objects that a watch has reported."""

    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def saw(self, _: str, found: Sequence[Object]) -> None:
        self.told.append(tuple(sorted(item["metadata"]["name"] for item in found)))

    async def until(self, *names: str) -> None:
        async with asyncio.timeout(20):
            while not self.told or self.told[-1] != names:
                await asyncio.sleep(0.01)


def pods(url: str) -> Callable[..., Any]:
    core = kubernetes.client.CoreV1Api(api(url))
    return lambda selector, **options: core.list_namespaced_pod(
        "prod", label_selector=selector, **options
    )


async def stop(*watches: Watch) -> None:
    await watching.stop(watches)
    names = {thread.name for thread in threading.enumerate()}
    assert not any(name.startswith("watch-") for name in names)


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


def test_watch_lists_objects_and_follows_changes() -> None:
    async def test(up: Cluster) -> None:
        await up.send("POST", PODS, named("a"))
        names = Names()
        watch = Watch("pods", pods(up.url), names.saw, WINDOW_S)
        watch.start()
        await names.until("a")
        await up.send("POST", PODS, named("b"))
        await names.until("a", "b")
        await up.send("DELETE", f"{PODS}/a")
        await names.until("b")
        await stop(watch)

    run(test)


def test_watch_keeps_objects_and_logs_once_when_server_dies(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def test(up: Cluster) -> None:
        await up.send("POST", PODS, named("a"))
        names = Names()
        watch = Watch("pods", pods(up.url), names.saw, WINDOW_S)
        watch.start()
        await names.until("a")
        await up.die()
        await eventually(lambda: "pods cannot be watched" in caplog.text)
        await asyncio.sleep(0.6)  # long enough for another request
        assert names.told[-1] == ("a",)
        await up.come_back()
        await up.send("POST", PODS, named("b"))
        await names.until("a", "b")
        await eventually(lambda: "pods are watched now" in caplog.text)
        assert caplog.text.count("cannot be watched") == 1
        await stop(watch)

    run(test)


async def asked_by(answer: Answer, done: Callable[[], bool]) -> Names:
    """Run a watch of a server that answers with `answer`, until shortly after `done`."""
    names = Names()
    async with answering(answer) as url:
        watch = Watch("pods", pods(url), names.saw, 30.0)
        watch.start()
        await eventually(done)
        await asyncio.sleep(0.2)
        await stop(watch)
    return names


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"items": 3}',
        '{"items": [{}]}',
        '{"items": [{"metadata": {}}]}',
        "\x00",
    ],
)
def test_watch_pauses_after_malformed_list(
    body: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_PAUSES_S", (600.0,))
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(text=body)

    names = asyncio.run(asked_by(answer, lambda: "the last known state stays" in caplog.text))
    assert names.told == []
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("lines", "is_fault"),
    [
        (b"", False),
        (b"\n\n", False),
        (b'{"type": "BOOKMARK", "object": {}}\n', False),
        (b"garbage\n", True),
        (b'{"type": "ADDED"}\n', True),
        (b'{"type": "ADDED", "object": {}}\n', True),
        (b'{"type": "ERROR", "object": {"code": 410, "reason": "Expired"}}\n', False),
        (b'{"type": "ERROR", "object": {"code": 500}}\n', True),
    ],
)
def test_watch_pauses_after_rounds_that_end_at_once(
    lines: bytes,
    is_fault: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "_PAUSES_S", (600.0,))
    lists = watches = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal lists, watches
        if "watch" in request.query:
            watches += 1
            return web.Response(body=lines)
        lists += 1
        return web.Response(text=json.dumps(GOOD))

    names = asyncio.run(asked_by(answer, lambda: watches > 0))
    assert set(names.told) == {("a",)}
    assert lists == watches == 1
    assert ("pods cannot be watched" in caplog.text) == is_fault


def test_watch_pauses_grow_and_reset_after_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_PAUSES_S", (0.001, 0.002, 0.003))
    watch = Watch("pods", lambda *_, **__: None, Names().saw, 30.0)
    assert [watch._next_pause_s() for _ in range(5)] == [0.001, 0.002, 0.003, 0.003, 0.003]

    lists = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal lists
        if "watch" not in request.query:
            lists += 1
            return web.Response(text=json.dumps(GOOD))
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(0.3)
        return response

    async def test() -> None:
        async with answering(answer) as url:
            # Each watch lasts longer than half of this window.
            watch = Watch("pods", pods(url), Names().saw, 0.5)
            watch._failures = 2
            watch.start()
            await eventually(lambda: lists > 2)
            failures = watch._failures
            await stop(watch)
            assert failures == 0

    asyncio.run(test())


def test_watch_lists_again_after_gone_without_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_PAUSES_S", (0.01,))
    caplog.set_level(logging.INFO)
    watches = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal watches
        if "watch" not in request.query:
            return web.Response(text=json.dumps(GOOD))
        watches += 1
        return web.Response(status=410)

    asyncio.run(asked_by(answer, lambda: watches > 1))
    assert not [record for record in caplog.records if record.name.startswith("kvtier")]


def test_watch_stops_although_server_never_responds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "_LIST_S", 0.3)

    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        await asyncio.sleep(30)
        return web.Response()

    assert asyncio.run(asked_by(answer, lambda: bool(asked))).told == []


def test_watch_logs_missing_verbs_when_forbidden(caplog: pytest.LogCaptureFixture) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=403)

    said = "pods cannot be watched: 403 Forbidden, it needs the verbs list and watch"
    asyncio.run(asked_by(answer, lambda: said in caplog.text))


def test_watch_restarts_at_once_with_new_selector() -> None:
    selectors: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            selectors.append(request.query.get("labelSelector", ""))
            return web.Response(text=json.dumps(GOOD))
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(30)
        return response

    async def test() -> None:
        told: list[str] = []
        async with answering(answer) as url:
            watch = Watch("pods", pods(url), lambda selector, _: told.append(selector), 30.0)
            watch.start("app=a")
            await eventually(lambda: told == ["app=a"])
            watch.start("app=b")
            await eventually(lambda: told == ["app=a", "app=b"])
            await stop(watch)
        assert selectors == ["app=a", "app=b"]

    asyncio.run(test())


def test_client_without_configuration_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(
        kubernetes.config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none")
    )
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InvalidSettings, match="no Kubernetes configuration found"):
        watching.client()
