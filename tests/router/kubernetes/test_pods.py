"""Against an API server over HTTP, that keeps objects in memory and streams watches."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from kvtier.errors import InvalidSettings
from kvtier.router.kubernetes.pods import Pods, Selected, parse_labels, replicas_of, selected_of
from kvtier.router.replicas import Replica
from tests.router.kubernetes.cluster import PODS, POOLS, Cluster, api, run

VLLM = Selected({"app": "vllm"}, [8000])


def pod(name: str, address: str | None, *, ready: bool = True, app: str = "vllm") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "prod", "labels": {"app": app}},
        "status": {
            "podIP": address,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def pool(app: str = "vllm", *ports: int) -> dict[str, Any]:
    numbers = [{"number": port} for port in ports or (8000,)]
    return {
        "metadata": {"name": "pool", "namespace": "prod"},
        "spec": {"selector": {"matchLabels": {"app": app}}, "targetPorts": numbers},
    }


async def until(sets: AsyncIterator[Sequence[Replica]], wanted: dict[str, str]) -> None:
    """The next sets, until one is this: name -> address."""
    seen: list[dict[str, str]] = []
    try:
        async with asyncio.timeout(10):
            async for found in sets:
                seen.append({replica.name: replica.address for replica in found})
                if seen[-1] == wanted:
                    return
    except TimeoutError:
        raise AssertionError(f"waited for {wanted}, saw {seen}") from None


def test_pods_come_and_go() -> None:
    async def test(up: Cluster) -> None:
        await up.send("POST", PODS, pod("a", "10.0.0.1"))
        await up.send("POST", PODS, pod("other", "10.0.0.9", app="else"))
        sets = Pods("prod", selected=VLLM, api=up.api).watch()
        await until(sets, {"prod/a": "10.0.0.1:8000"})
        await up.send("POST", PODS, pod("b", None, ready=False))
        await up.send("PATCH", f"{PODS}/b", pod("b", "fd00::2"))
        await until(sets, {"prod/a": "10.0.0.1:8000", "prod/b": "[fd00::2]:8000"})
        await up.send("DELETE", f"{PODS}/a")
        await until(sets, {"prod/b": "[fd00::2]:8000"})
        await sets.aclose()  # type: ignore[attr-defined]

    run(test)


def test_a_pool_says_which_pods_and_ports_and_may_change_its_mind() -> None:
    async def test(up: Cluster) -> None:
        await up.send("POST", PODS, pod("a", "10.0.0.1"))
        await up.send("POST", PODS, pod("x", "10.0.0.9", app="next"))
        sets = Pods("prod", pool="pool", api=up.api, window_s=0.5).watch()
        first = asyncio.create_task(until(sets, {"prod/a": "10.0.0.1:8000"}))
        await asyncio.sleep(0.05)
        assert not first.done(), "nobody is known before the pool is there"
        await up.send("POST", POOLS, pool())
        await first
        await up.send("PATCH", f"{POOLS}/pool", pool("vllm", 8000, 8001))
        both = {"prod/a:8000": "10.0.0.1:8000", "prod/a:8001": "10.0.0.1:8001"}
        await until(sets, both)
        await up.send("PATCH", f"{POOLS}/pool", pool("next", 8000))
        await until(sets, {"prod/x": "10.0.0.9:8000"})
        await sets.aclose()  # type: ignore[attr-defined]

    run(test)


def test_an_api_server_that_is_away_is_waited_for() -> None:
    async def run_away() -> None:
        sets = Pods("prod", selected=VLLM, api=api("http://127.0.0.1:9")).watch()
        first = asyncio.ensure_future(sets.__anext__())
        done, _ = await asyncio.wait([first], timeout=0.2)
        assert not done
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await sets.aclose()  # type: ignore[attr-defined]

    asyncio.run(run_away())


def test_only_ready_pods_that_stay_are_endpoints() -> None:
    assert replicas_of(pod("a", "10.0.0.1"), VLLM, "prod")[0].url == "http://10.0.0.1:8000"
    assert replicas_of(pod("a", "10.0.0.1"), VLLM, "prod")[0].labels == {"app": "vllm"}
    assert not replicas_of(pod("a", "10.0.0.1", ready=False), VLLM, "prod")
    assert not replicas_of(pod("a", None), VLLM, "prod")
    assert not replicas_of(pod("a", "10.0.0.1", app="else"), VLLM, "prod")
    leaving = pod("a", "10.0.0.1")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert not replicas_of(leaving, VLLM, "prod")
    assert not replicas_of({}, VLLM, "prod")


def test_both_versions_of_a_pool_are_read() -> None:
    assert selected_of(pool("vllm", 1, 2)) == Selected({"app": "vllm"}, [1, 2])
    old = {"spec": {"selector": {"app": "vllm"}, "targetPortNumber": 8000}}
    assert selected_of(old) == VLLM
    assert selected_of({"spec": {"selector": {"matchLabels": {"a": "b"}}}}) is None
    assert selected_of({}) is None


def test_settings_that_cannot_be_meant_are_told() -> None:
    assert parse_labels("a=b, c=", "--selector") == {"a": "b", "c": ""}
    with pytest.raises(InvalidSettings, match="--selector"):
        parse_labels("a", "--selector")
    with pytest.raises(InvalidSettings, match="one of them"):
        Pods("prod", api=object())
    with pytest.raises(InvalidSettings, match="--pool-group"):
        Pods("prod", pool="p", group="g", api=object())
