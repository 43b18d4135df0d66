"""Pod discovery against an API server over HTTP that keeps objects in memory."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from aiohttp import web

from kvtier.errors import InvalidSettings
from kvtier.router.fleet.kubernetes import watching
from kvtier.router.fleet.kubernetes.pods import (
    PodDiscovery,
    Selected,
    parse_labels,
    replicas_of,
    selected_of,
)
from kvtier.router.fleet.kubernetes.watching import Watch
from kvtier.router.fleet.replicas import Replica
from tests.router.fleet.kubernetes.cluster import (
    LEAVING,
    OLD_POOLS,
    PODS,
    POOLS,
    WINDOW_S,
    Cluster,
    answering,
    api,
    run,
)

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
    """Read sets until one equals `wanted`, a mapping of name to address."""
    seen: list[dict[str, str]] = []
    try:
        async with asyncio.timeout(30):
            async for found in sets:
                seen.append({replica.name: replica.address for replica in found})
                if seen[-1] == wanted:
                    return
    except TimeoutError:
        raise AssertionError(f"waited for {wanted}, saw {seen}") from None


def test_pods_are_added_and_removed() -> None:
    async def test(up: Cluster) -> None:
        await up.send("POST", PODS, pod("a", "10.0.0.1"))
        await up.send("POST", PODS, pod("other", "10.0.0.9", app="else"))
        sets = PodDiscovery("prod", selected=VLLM, api=up.api, window_s=WINDOW_S).watch()
        await until(sets, {"prod/a": "10.0.0.1:8000"})
        await up.send("POST", PODS, pod("b", None, ready=False))
        await up.send("PATCH", f"{PODS}/b", pod("b", "fd00::2"))
        await until(sets, {"prod/a": "10.0.0.1:8000", "prod/b": "[fd00::2]:8000"})
        await up.send("DELETE", f"{PODS}/a")
        await until(sets, {"prod/b": "[fd00::2]:8000"})
        await sets.aclose()  # type: ignore[attr-defined]

    run(test)


def test_pool_selects_pods_and_ports_and_may_change() -> None:
    async def test(up: Cluster) -> None:
        await up.send("POST", PODS, pod("a", "10.0.0.1"))
        await up.send("POST", PODS, pod("x", "10.0.0.9", app="next"))
        sets = PodDiscovery("prod", pool="pool", api=up.api, window_s=WINDOW_S).watch()
        first = asyncio.create_task(until(sets, {"prod/a": "10.0.0.1:8000"}))
        await asyncio.sleep(0.05)
        assert not first.done(), "no set is yielded before the pool exists"
        await up.send("POST", POOLS, pool())
        await first
        await up.send("PATCH", f"{POOLS}/pool", pool("vllm", 8000, 8001))
        both = {"prod/a:8000": "10.0.0.1:8000", "prod/a:8001": "10.0.0.1:8001"}
        await until(sets, both)
        await up.send("PATCH", f"{POOLS}/pool", pool("next", 8000))
        await until(sets, {"prod/x": "10.0.0.9:8000"})
        await sets.aclose()  # type: ignore[attr-defined]

    run(test)


def test_deleted_pool_has_no_replicas_until_recreated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test(up: Cluster) -> None:
        await up.send("POST", PODS, pod("a", "10.0.0.1"))
        await up.send("POST", POOLS, pool())
        sets = PodDiscovery("prod", pool="pool", api=up.api, window_s=WINDOW_S).watch()
        await until(sets, {"prod/a": "10.0.0.1:8000"})
        await up.send("DELETE", f"{POOLS}/pool")
        await until(sets, {})
        await asyncio.sleep(1.2)
        assert caplog.text.count("was deleted") == 1, (
            "the deletion is logged once, however often pools are listed"
        )
        await up.send("POST", POOLS, pool())
        await until(sets, {"prod/a": "10.0.0.1:8000"})
        await up.send("PATCH", f"{POOLS}/pool", LEAVING)
        await until(sets, {})
        await sets.aclose()  # type: ignore[attr-defined]

    run(test)


@pytest.mark.parametrize(("status", "is_gone"), [(404, True), (403, False), (500, False)])
def test_pool_whose_kind_is_gone_has_no_replicas_but_failure_keeps_them(
    status: int, is_gone: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_PAUSES_S", (0.05,))
    is_served = True
    asked = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        if "watch" in request.query:
            return web.Response(body=b"")
        if not request.path.endswith("pools"):
            return web.json_response({"metadata": {}, "items": [pod("a", "10.0.0.1")]})
        asked += 1
        if not is_served:
            return web.Response(status=status)
        return web.json_response({"metadata": {}, "items": [pool()]})

    async def test() -> None:
        nonlocal is_served, asked
        async with answering(answer) as url:
            pods = PodDiscovery("prod", pool="pool", api=api(url), window_s=WINDOW_S, absent_s=0.05)
            sets = pods.watch()
            await until(sets, {"prod/a": "10.0.0.1:8000"})
            is_served, asked = False, 0
            if is_gone:
                await until(sets, {})
            async with asyncio.timeout(20):
                while asked < 4:
                    await asyncio.sleep(0.01)
            assert [one.name for one in pods._replicas() or ()] == ([] if is_gone else ["prod/a"])
            is_served = True
            if is_gone:
                await until(sets, {"prod/a": "10.0.0.1:8000"})
            await sets.aclose()  # type: ignore[attr-defined]

    asyncio.run(test())
    assert ("the last known state stays" in caplog.text) != is_gone
    assert ("was deleted" in caplog.text) == is_gone


def test_malformed_pool_keeps_its_replicas() -> None:
    async def test(up: Cluster) -> None:
        await up.send("POST", PODS, pod("a", "10.0.0.1"))
        await up.send("POST", POOLS, pool())
        sets = PodDiscovery("prod", pool="pool", api=up.api, window_s=WINDOW_S).watch()
        await until(sets, {"prod/a": "10.0.0.1:8000"})
        await up.send("PATCH", f"{POOLS}/pool", {"spec": {"targetPorts": []}})
        await up.send("POST", PODS, pod("b", "10.0.0.2"))
        await until(sets, {"prod/a": "10.0.0.1:8000", "prod/b": "10.0.0.2:8000"})
        await sets.aclose()  # type: ignore[attr-defined]

    run(test)


def test_pool_of_version_v1alpha2() -> None:
    async def test(up: Cluster) -> None:
        await up.send("POST", PODS, pod("a", "10.0.0.1"))
        old = {
            "metadata": {"name": "pool", "namespace": "prod"},
            "spec": {"selector": {"app": "vllm"}, "targetPortNumber": 9000},
        }
        await up.send("POST", OLD_POOLS, old)
        await up.send("POST", POOLS, pool("else", 1))
        group = "inference.networking.x-k8s.io"
        sets = PodDiscovery("prod", pool="pool", group=group, api=up.api, window_s=WINDOW_S).watch()
        await until(sets, {"prod/a": "10.0.0.1:9000"})
        await up.send("PATCH", f"{OLD_POOLS}/pool", {"spec": {"targetPortNumber": 9001}})
        await until(sets, {"prod/a": "10.0.0.1:9001"})
        await sets.aclose()  # type: ignore[attr-defined]

    run(test)


def test_pods_terminating_or_in_other_namespaces_are_no_replicas() -> None:
    async def test(up: Cluster) -> None:
        elsewhere = pod("x", "10.0.0.8")
        elsewhere["metadata"]["namespace"] = "elsewhere"
        await up.send("POST", PODS.replace("prod", "elsewhere"), elsewhere)
        for name, address in (("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")):
            await up.send("POST", PODS, pod(name, address))
        sets = PodDiscovery("prod", selected=VLLM, api=up.api, window_s=WINDOW_S).watch()
        here = {
            "prod/a": "10.0.0.1:8000",
            "prod/b": "10.0.0.2:8000",
            "prod/c": "10.0.0.3:8000",
        }
        await until(sets, here)
        await up.send("PATCH", f"{PODS}/a", LEAVING)
        del here["prod/a"]
        await until(sets, here)
        await up.send("PATCH", f"{PODS}/b", pod("b", "10.0.0.2", ready=False))
        del here["prod/b"]
        await until(sets, here)
        await up.send("PATCH", f"{PODS}/c", {"metadata": {"labels": {"app": "else"}}})
        await until(sets, {})
        await sets.aclose()  # type: ignore[attr-defined]

    run(test)


def test_pods_stay_when_server_dies() -> None:
    async def test(up: Cluster) -> None:
        await up.send("POST", PODS, pod("a", "10.0.0.1"))
        await up.send("POST", POOLS, pool())
        sets = PodDiscovery("prod", pool="pool", api=up.api, window_s=WINDOW_S).watch()
        await until(sets, {"prod/a": "10.0.0.1:8000"})
        await up.die()
        following = asyncio.ensure_future(sets.__anext__())
        done, _ = await asyncio.wait([following], timeout=0.7)
        assert not done
        await up.come_back()
        await up.send("POST", PODS, pod("b", "10.0.0.2"))
        assert {replica.name for replica in await following} == {"prod/a", "prod/b"}
        await sets.aclose()  # type: ignore[attr-defined]

    run(test)


def test_pods_listed_for_previous_labels_are_ignored() -> None:
    async def test(up: Cluster) -> None:
        pods = PodDiscovery("prod", pool="pool", api=up.api, window_s=WINDOW_S)
        watch = Watch("pods", lambda *_, **__: None, lambda *_: None, 30.0)
        watch.start = lambda selector="": None  # type: ignore[method-assign]
        pods._on_pools([pool()], watch)
        pods._on_pods("app=vllm", [pod("a", "10.0.0.1")])
        assert [replica.name for replica in pods._replicas() or ()] == ["prod/a"]
        pods._on_pools([pool("next")], watch)
        pods._on_pods("app=vllm", [pod("a", "10.0.0.1")])
        assert pods._replicas() is None, "an unknown set differs from an empty one"
        pods._on_pods("app=next", [pod("x", "10.0.0.9", app="next")])
        assert [replica.name for replica in pods._replicas() or ()] == ["prod/x"]

    run(test)


def test_pod_discovery_waits_for_unreachable_api_server() -> None:
    async def run_away() -> None:
        sets = PodDiscovery("prod", selected=VLLM, api=api("http://127.0.0.1:9")).watch()
        first = asyncio.ensure_future(sets.__anext__())
        done, _ = await asyncio.wait([first], timeout=0.2)
        assert not done
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await sets.aclose()  # type: ignore[attr-defined]

    asyncio.run(run_away())


def test_replicas_of_pod_requires_ready_and_not_terminating() -> None:
    assert replicas_of(pod("a", "10.0.0.1"), VLLM, "prod")[0].url == "http://10.0.0.1:8000"
    assert replicas_of(pod("a", "10.0.0.1"), VLLM, "prod")[0].labels == {"app": "vllm"}
    assert not replicas_of(pod("a", "10.0.0.1", ready=False), VLLM, "prod")
    assert not replicas_of(pod("a", None), VLLM, "prod")
    assert not replicas_of(pod("a", "10.0.0.1", app="else"), VLLM, "prod")
    leaving = pod("a", "10.0.0.1")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert not replicas_of(leaving, VLLM, "prod")
    assert not replicas_of({}, VLLM, "prod")
    assert not replicas_of(pod("a", "10.0.0.1"), VLLM, "elsewhere")


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1/../@evil:80,8.8.8.8",
        "10.0.0",
        "host",
        "10.0.0.1:80",
        "[fd00::1]",
        "fe80::1%eth0",
        " ",
    ],
)
def test_pod_with_invalid_address_is_no_replica(address: str) -> None:
    assert not replicas_of(pod("a", address), VLLM, "prod")


def test_pod_addresses_are_written_as_gateways_write_them() -> None:
    (found,) = replicas_of(pod("a", "FD00:0::0001"), VLLM, "prod")
    assert found.address == "[fd00::1]:8000"


def test_address_shared_by_pods_is_one_replica() -> None:
    async def test(up: Cluster) -> None:
        for name in ("b", "a"):
            await up.send("POST", PODS, pod(name, "10.0.0.1"))
        await up.send("POST", PODS, pod("c", "10.0.0.2"))
        sets = PodDiscovery("prod", selected=VLLM, api=up.api, window_s=WINDOW_S).watch()
        await until(sets, {"prod/a": "10.0.0.1:8000", "prod/c": "10.0.0.2:8000"})
        await up.send("DELETE", f"{PODS}/a")
        await until(sets, {"prod/b": "10.0.0.1:8000", "prod/c": "10.0.0.2:8000"})
        await sets.aclose()  # type: ignore[attr-defined]

    run(test)


@pytest.mark.parametrize(
    "broken",
    [
        {"status": None},
        {"status": {"podIP": 3}},
        {"status": {"podIP": "10.0.0.1", "conditions": None}},
        {"status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready"}]}},
        {"metadata": {"name": "a", "namespace": "prod", "labels": None}},
        {"metadata": {"name": "a", "namespace": "prod", "labels": {"app": 3}}},
    ],
)
def test_malformed_pod_is_no_replica(broken: dict[str, Any]) -> None:
    assert not replicas_of({**pod("a", "10.0.0.1"), **broken}, VLLM, "prod")


def test_each_active_port_of_pool_is_a_replica() -> None:
    eight = Selected({"app": "vllm"}, list(range(8000, 8008)))
    found = replicas_of(pod("a", "fd00::1"), eight, "prod")
    assert [replica.url for replica in found] == [f"http://[fd00::1]:{p}" for p in eight.ports]
    assert len({replica.name for replica in found}) == 8

    some = pod("a", "10.0.0.1")
    older, newer = "inference.networking.k8s.io/active-ports", "llm-d.ai/active-ports"
    some["metadata"]["annotations"] = {older: "8001, 8003,9999,x"}
    ports = [replica.address.rpartition(":")[2] for replica in replicas_of(some, eight, "prod")]
    assert ports == ["8001", "8003"]
    some["metadata"]["annotations"][newer] = "8002"
    assert [r.name for r in replicas_of(some, eight, "prod")] == ["prod/a:8002"]
    some["metadata"]["annotations"][newer] = ""
    assert not replicas_of(some, eight, "prod")


def test_selected_of_reads_both_pool_versions() -> None:
    assert selected_of(pool("vllm", 1, 2)) == Selected({"app": "vllm"}, [1, 2])
    old = {"spec": {"selector": {"app": "vllm"}, "targetPortNumber": 8000}}
    assert selected_of(old) == VLLM
    assert selected_of({"spec": {"selector": {"matchLabels": {"a": "b"}}}}) is None
    assert selected_of({}) is None


@pytest.mark.parametrize(
    "spec",
    [
        None,
        {"selector": {"matchLabels": {"a": "b"}}, "targetPorts": [{"number": 0}]},
        {"selector": {"matchLabels": {"a": "b"}}, "targetPorts": [{"number": 65536}]},
        {"selector": {"matchLabels": {"a": "b"}}, "targetPorts": [{}]},
        {"selector": {"matchLabels": {"a": "b"}}, "targetPorts": [8000]},
        {"selector": {"matchLabels": {}}, "targetPorts": [{"number": 8000}]},
        {"selector": {"matchLabels": {"a": 1}}, "targetPorts": [{"number": 8000}]},
        {"selector": {"matchExpressions": {"a": "b"}}, "targetPorts": [{"number": 8000}]},
        {"selector": {"a": "b", "matchExpressions": {"c": "d"}}, "targetPortNumber": 8000},
        {"selector": None, "targetPortNumber": 8000},
    ],
)
def test_incomplete_pool_selects_nothing(spec: object) -> None:
    assert selected_of({"metadata": {"name": "pool"}, "spec": spec}) is None


def test_repeated_port_of_pool_is_used_once() -> None:
    assert selected_of(pool("vllm", 2, 1, 2)) == Selected({"app": "vllm"}, [2, 1])


def test_invalid_pod_discovery_settings_are_errors() -> None:
    assert parse_labels("a=b, c=", "--selector") == {"a": "b", "c": ""}
    assert parse_labels("a==b", "--selector") == {"a": "b"}
    for text in ("a", "", "=b", "a!=b", "a in (b,c)", "a notin (b=c)", "!a"):
        with pytest.raises(InvalidSettings, match="--selector"):
            parse_labels(text, "--selector")
    with pytest.raises(InvalidSettings, match="either a pool or a selector"):
        PodDiscovery("prod", api=object())
    with pytest.raises(InvalidSettings, match="--pool-group"):
        PodDiscovery("prod", pool="p", group="g", api=object())
