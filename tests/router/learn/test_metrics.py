import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from kvtier.clock import VirtualClock
from kvtier.index.fleet.estimated import EstimatedIndex
from kvtier.index.fleet.prompt import TokenPrompt
from kvtier.router.choose.base import Endpoint, ReplicaLoad, ReplicaTier
from kvtier.router.learn import metrics as module
from kvtier.router.learn.gauges import GaugeNames
from kvtier.router.learn.metrics import LoadReader, Scraper, apply_load

VLLM = """
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="1",model_name="m"} 1.0
vllm:num_requests_running{engine="0",model_name="m"} 5.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:cache_config_info{block_size="128",num_gpu_blocks="100",engine="0"} 1.0
vllm:cache_config_info{block_size="128",num_gpu_blocks="50",engine="1"} 1.0
vllm:lora_requests_info{max_lora="4",running_lora_adapters="a,b",waiting_lora_adapters="c"} 20.0
vllm:lora_requests_info{max_lora="4",running_lora_adapters="old",waiting_lora_adapters=""} 10.0
kvtier_capacity_tokens{tier="ram",engine="0"} 64000
kvtier_capacity_tokens{tier="disk",engine="0"} 640000
"""


def read(text: str, reader: LoadReader | None = None) -> ReplicaLoad:
    reader = reader or LoadReader()
    return reader.load(reader.parse(text.encode()), 7.0)


def test_load_of_vllm_with_kvtier_tiers() -> None:
    assert read(VLLM) == ReplicaLoad(
        waiting=4,
        running=5,
        kv_usage=0.5,
        block_tokens=128,
        tiers={
            "device": ReplicaTier(capacity_tokens=19_200),
            "ram": ReplicaTier(capacity_tokens=64_000),
            "disk": ReplicaTier(capacity_tokens=640_000),
        },
        adapters=frozenset("abc"),
        updated_s=7.0,
    )


def test_load_of_sglang() -> None:
    load = read(
        'sglang:num_queue_reqs{model="m"} 2\nsglang:num_running_reqs{model="m"} 1\n'
        'sglang:token_usage{model="m"} 0.1\nsglang:cache_config_info{page_size="1",num_pages="9"} 1'
    )
    assert (load.waiting, load.running, load.kv_usage, load.block_tokens) == (2, 1, 0.1, 1)
    assert load.tiers == {"device": ReplicaTier(capacity_tokens=9)}


def test_load_of_tensorrt_llm_and_triton() -> None:
    serve = read(
        "trtllm_num_requests_waiting 3\ntrtllm_num_requests_running 2\n"
        "trtllm_kv_cache_utilization 0.4"
    )
    assert (serve.waiting, serve.running, serve.kv_usage) == (3, 2, 0.4)
    triton = read(
        'nv_trt_llm_request_metrics{model="m",request_type="waiting"} 5\n'
        'nv_trt_llm_request_metrics{model="m",request_type="scheduled"} 4\n'
        'nv_trt_llm_request_metrics{model="m",request_type="active"} 99\n'
        'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="m"} 0.7\n'
        'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="m"} 800'
    )
    assert (triton.waiting, triton.running, triton.kv_usage) == (5, 4, 0.7)


def test_gauge_without_name_is_not_read() -> None:
    load = read("vllm:num_requests_waiting 6", LoadReader(GaugeNames(waiting=())))
    assert load.waiting == 0


def test_load_by_older_and_configured_gauge_names() -> None:
    assert read("vllm:gpu_cache_usage_perc 0.5").kv_usage == 0.5
    names = GaugeNames(waiting=('triton_queue{model="m",kind=pending}',))
    text = 'triton_queue{model="m",kind="pending"} 6\ntriton_queue{model="m",kind="x"} 7'
    assert read(text, LoadReader(names)).waiting == 6
    with pytest.raises(ValueError, match="not a metric"):
        LoadReader(GaugeNames(running=("a b",)))


def counters(tokens: float, seconds: float, tier: str = "disk") -> str:
    return f"""
vllm:request_prefill_kv_computed_tokens_sum{{engine="0"}} {tokens}
vllm:request_prefill_time_seconds_sum{{engine="0"}} {seconds}
kvtier_capacity_tokens{{tier="{tier}"}} 100
kvtier_hit_tokens_total{{tier="{tier}"}} {tokens}
kvtier_transfer_seconds_sum{{tier="{tier}",direction="promote"}} {seconds}
kvtier_transfer_seconds_sum{{tier="{tier}",direction="demote"}} 1e9
vllm:kv_offload_load_time_total{{engine="0"}} {seconds}
"""


@pytest.mark.parametrize("tier", ["disk", "ram"])
def test_rates_are_best_recent_measurements_between_scrapes(tier) -> None:
    reader = LoadReader()
    rates = []
    moments = ((1000, 10), (1400, 11), (1400, 12), (3400, 12), (3800, 13), (10, 1), (1010, 2))
    for tokens, seconds in moments:
        load = read(counters(tokens, seconds, tier), reader)
        assert load.tiers[tier].load_tokens_per_s == pytest.approx(load.prefill_tokens_per_s)
        rates.append(load.prefill_tokens_per_s)
    better = (400 * 0.8 + 2000) / 1.8
    assert rates == pytest.approx([0, 400, 400, better, better, better, better])


@pytest.mark.parametrize("tier", ["disk", "ram"])
def test_load_rate_is_measured_although_seconds_were_missing_before(tier) -> None:
    reader = LoadReader()
    text = f'kvtier_capacity_tokens{{tier="{tier}"}} 100\nkvtier_hit_tokens_total{{tier="{tier}"}} '
    seconds = {
        "ram": "vllm:kv_offload_load_time_total 0.5",
        "disk": 'kvtier_transfer_seconds_sum{tier="disk",direction="promote"} 0.5',
    }
    rates = [
        read(text + rest, reader).tiers[tier].load_tokens_per_s
        for rest in ("0", "2000", f"2000\n{seconds[tier]}", f"2000\n{seconds[tier]}")
    ]
    assert rates == [0, 0, 4000, 4000]


def test_short_prefills_do_not_lower_prefill_rate() -> None:
    reader = LoadReader()
    rates = []
    for tokens, count, seconds in ((0, 0, 0), (4000, 2, 2), (4100, 4, 3), (8100, 5, 5)):
        text = (
            f"vllm:request_prefill_kv_computed_tokens_sum {tokens}\n"
            f"vllm:request_prefill_kv_computed_tokens_count {count}\n"
            f"vllm:request_prefill_time_seconds_sum {seconds}\n"
        )
        rates.append(read(text, reader).prefill_tokens_per_s)
    assert rates == [0, 2000, 2000, 2000]


def test_restart_of_replica_is_counted() -> None:
    reader = LoadReader()
    noticed = []
    for text in ("", "process_start_time_seconds 5", "process_start_time_seconds 5", "", "x 1"):
        read(text, reader)
        noticed.append(reader.restarts)
    read("process_start_time_seconds 6", reader)
    assert (noticed, reader.restarts) == ([0] * 5, 1)


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("vllm:num_requests_waiting NaN", 1),
        ("vllm:num_requests_waiting -3", 1),
        ("vllm:num_requests_waiting 1e300", 1),
        ("vllm:num_requests_running +Inf", 1),
        ("vllm:kv_cache_usage_perc 50", 1),
        ('vllm:cache_config_info{block_size="-1",num_gpu_blocks="x"} 1', 2),
        ('vllm:cache_config_info{block_size="9999999999999999",num_gpu_blocks="1"} 1', 1),
        ('vllm:cache_config_info{block_size="None",num_gpu_blocks="None"} 1', 0),
        ('kvtier_capacity_tokens{tier="ram"} -5', 1),
        ('kvtier_capacity_tokens{tier="device"} 5', 1),
        ('kvtier_capacity_tokens{tier="../x"} 5', 0),
        ("vllm:lora_requests_info 5", 0),
    ],
)
def test_implausible_numbers_are_ignored_and_counted(line, bad) -> None:
    reader = LoadReader()
    assert read(line, reader) == ReplicaLoad(updated_s=7.0)
    assert reader.bad_values == bad


def test_number_of_tiers_is_bounded() -> None:
    text = "\n".join(f'kvtier_capacity_tokens{{tier="t{n}"}} 5' for n in range(100))
    assert len(read(text).tiers) <= 7


names = st.sampled_from(sorted(LoadReader()._wanted))
labels = st.sampled_from(
    ["", '{tier="ram"}', '{block_size="16",num_gpu_blocks="5"}', '{direction="promote",tier="ram"}']
)


@given(st.lists(st.tuples(names, labels, st.floats()), max_size=20))
def test_load_is_plausible_for_any_metrics(lines) -> None:
    reader = LoadReader()
    text = "\n".join(f"{name}{label} {value}" for name, label, value in lines)
    for _ in range(2):
        load = read(text, reader)
    assert load.waiting >= 0
    assert load.running >= 0
    assert 0 <= load.kv_usage <= 1
    assert math.isfinite(load.prefill_tokens_per_s)
    assert load.prefill_tokens_per_s >= 0
    assert all(tier.capacity_tokens >= 0 for tier in load.tiers.values())


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def scraped(
    answer: Answer, times: int = 1, **options: Any
) -> tuple[list[ReplicaLoad | None], Scraper]:
    async def run() -> tuple[list[ReplicaLoad | None], Scraper]:
        app = web.Application()
        app.router.add_get("/metrics", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            async with aiohttp.ClientSession() as session:
                url = f"http://127.0.0.1:{port}/metrics"
                scraper = Scraper(session, url, clock=VirtualClock(3.0), **options)
                return [await scraper.scrape() for _ in range(times)], scraper
        finally:
            await runner.cleanup()

    return asyncio.run(run())


def test_scrape_returns_load() -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=VLLM)

    (load, _), scraper = scraped(answer, times=2)
    assert load is not None
    assert (load.waiting, load.updated_s) == (4, 3.0)
    assert scraper.counts == module.ScrapeCounts(scrapes=2)


def test_large_metrics_are_parsed_on_thread(monkeypatch) -> None:
    monkeypatch.setattr(module, "_INLINE_MAX", 10)

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=VLLM)

    (load,), _ = scraped(answer)
    assert load is not None
    assert load.waiting == 4


@pytest.mark.parametrize("kind", ["hangs", "endless", "fails", "elsewhere", "trickles"])
def test_failed_scrapes_are_counted(kind, monkeypatch) -> None:
    monkeypatch.setattr(module, "BODY_MAX", 100_000)

    async def answer(request: web.Request) -> web.StreamResponse:
        if kind == "hangs":
            await asyncio.sleep(30)
        if kind == "fails":
            return web.Response(status=500, text=VLLM)
        if kind == "elsewhere":
            raise web.HTTPFound("/metrics")
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * (50_000 if kind == "endless" else 1))
            await asyncio.sleep(0.01)

    (load,), scraper = scraped(answer, timeout_s=5.0 if kind == "endless" else 0.3)
    assert load is None
    assert scraper.counts == module.ScrapeCounts(scrapes=1, failures=1)


def test_scrape_of_unreachable_replica_fails() -> None:
    async def run() -> None:
        async with aiohttp.ClientSession() as session:
            scraper = Scraper(session, "http://127.0.0.1:1/metrics")
            assert await scraper.scrape() is None
            assert scraper.counts.failures == 1

    asyncio.run(run())


def test_apply_load_updates_endpoint_and_index() -> None:
    endpoint = Endpoint(name="a", address="a:1", models=frozenset({"m"}))
    index = EstimatedIndex()
    load = read('vllm:cache_config_info{block_size="16",num_gpu_blocks="2"} 1')
    apply_load(endpoint, load, [index])
    assert endpoint.load is load
    index.routed(TokenPrompt(range(100), "m"), "a")
    assert index.match(TokenPrompt(range(100), "m"), ["a"])[0].best_tokens == 32


def test_rates_of_absent_tiers_are_removed() -> None:
    reader = LoadReader()
    for number in range(100):
        read(
            "".join(f'kvtier_capacity_tokens{{tier="t{number}-{n}"}} 5\n' for n in range(6)), reader
        )
    assert len(reader._loads) <= 6
