from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.router.learn.learner import ReplicaSink
from tests.router.learn.blocks import held, stored


def test_replica_sink_accepts_any_topic() -> None:
    index = PreciseIndex()
    index.add("a", "m")
    sink = ReplicaSink(index, "a")
    assert sink.accepts(b"")
    assert sink.accepts(b"kv@\xff@other")
    sink.apply(b"", [stored(DEVICE, shared=False)])
    assert held(index, "a", "m") == 32
    sink.reset()
    assert held(index, "a", "m") == 0
