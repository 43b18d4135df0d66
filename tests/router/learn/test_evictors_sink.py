from kvtier.index.fleet.events import BlocksRemoved
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.router.learn.evictors import SharedSink
from tests.router.learn.blocks import held, stored


def test_shared_sink_applies_only_to_models_of_topic() -> None:
    index, models = PreciseIndex(), {"org/m@1": ("m", "n")}
    for model in ("m", "n", "o"):
        index.add(model, model)
        index.apply(model, [stored("shared", shared=True)])
    sink = SharedSink([index], lambda name: models.get(name, ()))
    gone = [BlocksRemoved(names=[2], tier="shared", is_shared=True)]
    for topic in (b"", b"kv@tree", b"kv@tree@other", b"kv@\xff@\xff"):
        assert not sink.accepts(topic)
        sink.apply(topic, gone)
    assert [held(index, model, model) for model in "mno"] == [32, 32, 32]
    assert sink.accepts(b"kv@tree@org/m@1")
    sink.apply(b"kv@tree@org/m@1", gone)
    sink.reset()
    assert [held(index, model, model) for model in "mno"] == [16, 16, 32]
