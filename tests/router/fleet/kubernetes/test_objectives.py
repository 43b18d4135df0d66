import asyncio
import json
import logging
from typing import Any

import pytest
from aiohttp import web

from kvtier.router.fleet.kubernetes.objectives import PoolObjectives
from kvtier.router.fleet.objectives import Objectives
from tests.router.fleet.kubernetes.cluster import (
    LEAVING,
    NEWER,
    OBJECTIVES,
    OLDER,
    WINDOW_S,
    Cluster,
    answering,
    api,
    run,
)

GROUP = "inference.networking.k8s.io"


def objective(
    name: str, priority: Any = None, pool: str = "pool", **reference: str
) -> dict[str, Any]:
    spec = {"poolRef": {"name": pool, **reference}}
    if priority is not None:
        spec["priority"] = priority
    return {"metadata": {"name": name, "namespace": "prod"}, "spec": spec}


def followed(up: Cluster, objectives: Objectives, **options: Any) -> PoolObjectives:
    return PoolObjectives("prod", "pool", objectives, api=up.api, window_s=WINDOW_S, **options)


async def until(objectives: Objectives, **wanted: int) -> None:
    try:
        async with asyncio.timeout(20):
            while dict(objectives) != wanted:
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited for {wanted}, there is {dict(objectives)}") from None


def test_objectives_follow_created_changed_and_deleted_objects() -> None:
    async def test(up: Cluster) -> None:
        up.serve(*OBJECTIVES)
        await up.send("POST", NEWER, objective("batch", -1, group=GROUP, kind="InferencePool"))
        objectives = Objectives()
        async with followed(up, objectives):
            await until(objectives, batch=-1)
            await up.send("POST", OLDER, objective("chat", 10))
            await until(objectives, batch=-1, chat=10)
            await up.send("POST", NEWER, objective("unset"))
            await until(objectives, batch=-1, chat=10, unset=0)
            await up.send("PATCH", f"{NEWER}/batch", {"spec": {"priority": -5}})
            await until(objectives, batch=-5, chat=10, unset=0)
            await up.send("PATCH", f"{NEWER}/batch", {"spec": {"poolRef": {"name": "next"}}})
            await until(objectives, chat=10, unset=0)
            await up.send("DELETE", f"{OLDER}/chat")
            await until(objectives, unset=0)

    run(test)


def test_objectives_of_other_pools_and_malformed_ones_are_ignored() -> None:
    async def test(up: Cluster) -> None:
        up.serve(*OBJECTIVES)
        elsewhere = NEWER.replace("prod", "elsewhere")
        for path, item in (
            (NEWER, objective("other-pool", 1, "next")),
            (NEWER, objective("other-group", 2, group="inference.networking.x-k8s.io")),
            (NEWER, objective("other-kind", 3, kind="Service")),
            (NEWER, objective("no-number", "high")),
            (NEWER, {"metadata": {"name": "no-pool", "namespace": "prod"}, "spec": {}}),
            (NEWER, {"metadata": {"name": "no-spec", "namespace": "prod"}}),
            (elsewhere, {**objective("a", 4), "metadata": {"name": "a", "namespace": "elsewhere"}}),
            (NEWER, objective("good", 5)),
        ):
            await up.send("POST", path, item)
        await up.send("POST", NEWER, objective("leaving", 6))
        await up.send("PATCH", f"{NEWER}/leaving", LEAVING)
        objectives = Objectives()
        async with followed(up, objectives):
            await until(objectives, good=5)

    run(test)


def test_objectives_of_pool_in_older_group() -> None:
    async def test(up: Cluster) -> None:
        up.serve(*OBJECTIVES)
        group = "inference.networking.x-k8s.io"
        await up.send("POST", OLDER, objective("ours", 1, group=group))
        await up.send("POST", OLDER, objective("of-the-stable-one", 2))
        objectives = Objectives()
        async with followed(up, objectives, group=group):
            await until(objectives, ours=1)

    run(test)


def test_objectives_precedence_is_flags_then_newer_group_then_older() -> None:
    async def test(up: Cluster) -> None:
        up.serve(*OBJECTIVES)
        await up.send("POST", OLDER, objective("both", 1))
        await up.send("POST", NEWER, objective("both", 2))
        await up.send("POST", NEWER, objective("batch", 3))
        objectives = Objectives({"batch": -1})
        async with followed(up, objectives):
            await until(objectives, batch=-1, both=2)
            await up.send("DELETE", f"{NEWER}/both")
            await until(objectives, batch=-1, both=1)
            await up.send("DELETE", f"{NEWER}/batch")
            await up.send("POST", NEWER, objective("last", 4))
            await until(objectives, batch=-1, both=1, last=4)

    run(test)


def test_objectives_kind_that_is_not_served_is_retried_without_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def test(up: Cluster) -> None:
        up.serve(OBJECTIVES[1])
        await up.send("POST", OLDER, objective("older", 1))
        objectives = Objectives()
        async with followed(up, objectives, absent_s=0.1):
            await until(objectives, older=1)
            said = "the cluster has no inferenceobjectives.llm-d.ai"
            async with asyncio.timeout(20):
                while said not in caplog.text:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)  # long enough for another request
            assert caplog.text.count(said) == 1
            up.serve(OBJECTIVES[0])
            await up.send("POST", NEWER, objective("newer", 2))
            await until(objectives, older=1, newer=2)
            assert "WARNING" not in caplog.text

    run(test)


@pytest.mark.parametrize(("status", "kept"), [(404, {}), (403, {"a": 1}), (500, {"a": 1})])
def test_objectives_are_removed_with_their_kind_but_kept_on_failure(
    status: int, kept: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    good = {"metadata": {}, "items": [objective("a", 1)]}
    refusals: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        if "watch" in request.query:
            return web.Response(body=b"")
        if refusals or objectives:
            refusals.append(request.path)
            return web.Response(status=status)
        return web.Response(text=json.dumps(good))

    objectives = Objectives()

    async def test() -> None:
        async with (
            answering(answer) as url,
            PoolObjectives("prod", "pool", objectives, api=api(url)),
        ):
            async with asyncio.timeout(20):
                while len(set(refusals)) < 2 or dict(objectives) != kept:
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            assert dict(objectives) == kept

    asyncio.run(test())
    assert ("ignored: 403" in caplog.text) == (status == 403)


def test_objectives_stay_when_server_dies() -> None:
    async def test(up: Cluster) -> None:
        up.serve(*OBJECTIVES)
        await up.send("POST", NEWER, objective("batch", -1))
        objectives = Objectives()
        async with followed(up, objectives):
            await until(objectives, batch=-1)
            await up.die()
            await asyncio.sleep(0.7)
            assert dict(objectives) == {"batch": -1}
            await up.come_back()
            await up.send("PATCH", f"{NEWER}/batch", {"spec": {"priority": -2}})
            await until(objectives, batch=-2)

    run(test)
