from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.events import BlocksStored
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.index.fleet.prompt import TokenPrompt
from kvtier.router.learn.learner import ReplicaSink

TOKENS = list(range(32))


def held(index: PreciseIndex, replica: str, model: str) -> int:
    return index.match(TokenPrompt(TOKENS, model), [replica])[0].best_tokens


def stored(tier: str, *, shared: bool) -> BlocksStored:
    return BlocksStored(
        names=[1, 2],
        parent=None,
        token_ids=TOKENS,
        block_tokens=16,
        tier=tier,
        is_shared=shared,
    )


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
