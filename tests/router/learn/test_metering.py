from prometheus_client import CollectorRegistry, generate_latest

from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.events import BlocksRemoved, BlocksStored
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.metrics import declaration
from kvtier.metrics import router as metrics
from kvtier.router.learn.evictors import Evictors, SharedSink
from kvtier.router.learn.metering import LearningMeter
from kvtier.router.learn.metrics import ScrapeCounts

EVICTOR = "tcp://evictor:5559"


def made() -> tuple[LearningMeter, PreciseIndex, Evictors]:
    index = PreciseIndex()
    evictors = Evictors([EVICTOR], SharedSink([index], lambda name: ()))
    return LearningMeter([index], evictors), index, evictors


def rendered(meter: LearningMeter) -> dict[str, float]:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(meter)
    lines = generate_latest(registry).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_learning_meter_exposes_every_counter() -> None:
    meter, index, evictors = made()
    meter.scrapes["a"] = ScrapeCounts(scrapes=9, failures=2, bad_values=3, restarts=1)
    stream = meter.stream("a")
    assert meter.stream("a") is stream
    stream.messages, stream.bad_messages, stream.repeated, stream.foreign = 20, 4, 3, 2
    stream.blocks, stream.bad_events = 70, 5
    stream.gaps, stream.replays, stream.resyncs, stream.restarts = 6, 7, 8, 9
    evictors.counts[EVICTOR].blocks = 11
    index.add("a", "m")
    index.apply(
        "a",
        [
            BlocksStored(names=[1], parent=None, token_ids=[1] * 16, block_tokens=16, tier=DEVICE),
            BlocksStored(names=[2], parent=9, token_ids=[1] * 16, block_tokens=16, tier=DEVICE),
            BlocksRemoved(names=[3, 4], tier=DEVICE),
        ],
    )
    found = rendered(meter)
    assert found['kvtier_router_scrapes_total{replica="a",scraped="ok"}'] == 7
    assert found['kvtier_router_scrapes_total{replica="a",scraped="failed"}'] == 2
    assert found['kvtier_router_bad_values_total{replica="a"}'] == 3
    assert found['kvtier_router_restarts_total{replica="a"}'] == 1
    said = {"read": 11, "bad": 4, "repeated": 3, "foreign": 2}
    for message, count in said.items():
        name = f'kvtier_router_messages_total{{message="{message}",source="a"}}'
        assert found[name] == count
    for gap, count in {"seen": 6, "filled": 7, "forgotten": 8, "restart": 9}.items():
        assert found[f'kvtier_router_gaps_total{{gap="{gap}",source="a"}}'] == count
    assert found['kvtier_router_event_blocks_total{source="a"}'] == 70
    assert found[f'kvtier_router_event_blocks_total{{source="{EVICTOR}"}}'] == 11
    assert found['kvtier_router_bad_events_total{source="a"}'] == 5
    assert found['kvtier_router_dropped_blocks_total{why="orphan"}'] == 1
    assert found['kvtier_router_dropped_blocks_total{why="unknown"}'] == 2
    assert found['kvtier_router_dropped_blocks_total{why="stranger"}'] == 0
    assert found['kvtier_router_known_blocks{replica="a"}'] == 1
    assert found["kvtier_router_refused_blocks"] == 0


def test_learning_meter_exposes_declared_metrics_and_labels() -> None:
    meter, _, _ = made()
    meter.scrapes["a"] = ScrapeCounts()
    meter.stream("a")
    families = {family.name: family for family in meter.collect()}
    assert set(families) == {metric.name for metric in metrics.ROUTER_METRICS}
    for metric in metrics.ROUTER_METRICS:
        for sample in families[metric.name].samples:
            assert set(sample.labels) == set(metric.labels)
            for label, value in sample.labels.items():
                known = declaration.LABEL_VALUES[label]
                assert value in known or label in ("replica", "source")


def test_learning_meter_removes_series_of_replica() -> None:
    meter, _, _ = made()
    meter.scrapes["a"] = ScrapeCounts()
    meter.stream("a")
    assert any('"a"' in name for name in rendered(meter))
    meter.remove("a")
    meter.remove("a")
    assert not any('"a"' in name for name in rendered(meter))
