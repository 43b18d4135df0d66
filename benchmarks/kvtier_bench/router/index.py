"""The prefix indexes of the router: lookup time of the longest prompts, events, and memory.

Prompts have 100,000 tokens in blocks of 16; 64 replicas with three tiers have a million blocks. One
row measures a whole decision for a short prompt.
"""

import gc
import statistics
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import numpy as np

from kvtier.clock import seeded
from kvtier.index.fleet.base import DEVICE
from kvtier.index.fleet.estimated import EstimatedIndex
from kvtier.index.fleet.events import BlocksStored
from kvtier.index.fleet.precise import PreciseIndex
from kvtier.index.fleet.prompt import Numbers, TextPrompt, TokenPrompt
from kvtier.router.choose.base import Endpoint, InferenceRequest
from kvtier.router.config.indexes import DEFAULT_INDEX
from kvtier.router.config.profiles import build_profiles
from kvtier.router.config.reading import read_configuration
from kvtier.router.learn.wire import decode
from kvtier_bench.micro.index import resident_bytes
from kvtier_bench.micro.timing import interleave
from kvtier_bench.rows import Row, Target, measured

TOKENS: Final = 100_000
BLOCK_TOKENS: Final = 16
REPLICAS: Final = tuple(f"replica-{number}" for number in range(64))
SHORT_BYTES: Final = 2048
ENTRIES: Final = 1_000_000
MODEL: Final = "m"

_ROUNDS: Final = 99
_ENDS: Final = (1, 8, 64)
"""The numbers of different lengths of the replicas' prefixes, in the prompts that are matched."""
_EVENT_BLOCKS: Final = 10
_VOCABULARY: Final = 128_000


def measure_router_index(entries: int = ENTRIES) -> list[Row]:
    """Return all rows. Takes half a minute for a million entries."""
    # Memory comes first: its growth would be hidden by the reuse of memory that other parts freed.
    return [*_memory(entries), *_decision(), *_short(), *_events()]


# -- one decision --------------------------------------------------------------------------


def _decision() -> list[Row]:
    tokens = _tokens(1)
    calls: dict[str, Callable[[], object]] = {"hash": lambda: _prompt(tokens).chain(BLOCK_TOKENS)}
    for ends in _ENDS:
        calls[f"match {ends}"] = _matching(_fleet(tokens, ends), _prompt(tokens))
    everything = _fleet(tokens, 8)
    calls["decide"] = lambda: everything.match(_prompt(tokens), REPLICAS)
    seconds = interleave({name: _without_result(call) for name, call in calls.items()}, _ROUNDS)
    rows = [_row("hash all prefixes of 100,000 tokens", seconds["hash"], 1e3, "ms", 1.0)]
    for ends in _ENDS:
        place = "one place" if ends == 1 else f"{ends} places"
        name = f"match 6,250 blocks on 64 replicas that end in {place}, hashed before"
        rows.append(_row(name, seconds[f"match {ends}"], 1e6, "us", 50.0))
    name = "hash and match 100,000 tokens on 64 replicas"
    rows.append(_row(name, seconds["decide"], 1e3, "ms", 3.0))
    rows.append(_routing())
    return rows


def _short() -> list[Row]:
    """Measure the default profile's whole decision for 2 KiB of text, hashing included."""
    text = bytes(seeded(3).choices(range(32, 127), k=SHORT_BYTES))
    calls = {f"{count}": _deciding(text, count) for count in (2, len(REPLICAS))}
    seconds = interleave(calls, _ROUNDS)
    bounds = {2: 60.0, len(REPLICAS): None}
    return [
        _row(f"decide on 2 KiB of text, {count} replicas", seconds[f"{count}"], 1e6, "us", bound)
        for count, bound in bounds.items()
    ]


def _deciding(text: bytes, count: int) -> Callable[[], None]:
    index = EstimatedIndex()
    chooser = build_profiles(read_configuration(None), {DEFAULT_INDEX: index})["default"]
    endpoints = [
        Endpoint(name=name, address=f"{name}:8000", models=frozenset({MODEL}), pending_tokens=0)
        for name in REPLICAS[:count]
    ]
    for name in REPLICAS[:count]:
        index.routed(TextPrompt(text, MODEL), name)

    def decide() -> None:
        request = InferenceRequest(request_id="r", model=MODEL, prompt=TextPrompt(text, MODEL))
        chooser.decide(request, endpoints, 0.0)

    return decide


def _routing() -> Row:
    """Measure recording a prompt when every tier is full, so that it evicts as many blocks."""
    index = EstimatedIndex({DEVICE: 4 * TOKENS, "ram": 8 * TOKENS})
    prompts = [_prompt(_tokens(seed)) for seed in range(2, 40)]
    for prompt in prompts:
        prompt.chain(BLOCK_TOKENS)
    waiting = iter(prompts)
    seconds = interleave({"route": lambda: index.routed(next(waiting), "a")}, 25, warm_up=10)
    name = "remember 6,250 new blocks in two full tiers, estimated"
    return _row(name, seconds["route"], 1e3, "ms", None)


def _fleet(tokens: Numbers, ends: int) -> EstimatedIndex:
    index = EstimatedIndex({DEVICE: 40 * TOKENS, "ram": 80 * TOKENS, "disk": 160 * TOKENS})
    for number, replica in enumerate(REPLICAS):
        held = TOKENS * (1 + number % ends) // ends
        index.routed(_prompt(tokens[:held]), replica)
    return index


def _matching(index: EstimatedIndex, prompt: TokenPrompt) -> Callable[[], object]:
    prompt.chain(BLOCK_TOKENS)
    return lambda: index.match(prompt, REPLICAS)


# -- events and memory ---------------------------------------------------------------------


def _events() -> list[Row]:
    blocks = 20_000
    payloads = [
        msgspec.msgpack.encode([1.0, [_wire(event)], 0]) for event in _stored(blocks, seed=5)
    ]
    seconds: list[float] = []
    for _ in range(5):
        index = PreciseIndex()
        index.add("a", MODEL)

        def take(index: PreciseIndex = index) -> None:
            for payload in payloads:
                batch = decode(payload)
                if batch is not None:
                    index.apply("a", batch.events)

        seconds += interleave({"take": take}, 1, warm_up=0)["take"]
        assert index.held_blocks("a") == blocks
    return [
        measured(
            "events decoded and applied, 10 blocks a message",
            blocks / statistics.median(seconds),
            "blocks/s",
            target=Target(">=", 50_000),
            note="one core",
        )
    ]


def _memory(entries: int) -> list[Row]:
    index = PreciseIndex(blocks_max=entries)
    share = entries // 16
    for replica in REPLICAS[:16]:
        index.add(replica, MODEL)
    gc.collect()
    before = resident_bytes()
    for number, replica in enumerate(REPLICAS[:16]):
        for event in _stored(share, seed=number):
            index.apply(replica, [event])
    gc.collect()
    held = sum(index.held_blocks(replica) for replica in REPLICAS[:16])
    return [
        measured(
            f"memory an entry, {held:,} blocks of 16 replicas, no two alike",
            (resident_bytes() - before) / held,
            "bytes",
            target=Target("<=", 250),
            note="masks, the engines' own names and the tree; growth of resident memory",
        )
    ]


def _stored(blocks: int, seed: int) -> Iterator[BlocksStored]:
    """Yield events of prefixes of 100 blocks, ten blocks each."""
    random = seeded(seed)
    parent: int | None = None
    for number in range(blocks // _EVENT_BLOCKS):
        if number % 10 == 0:
            parent = None
        names = [random.getrandbits(60) for _ in range(_EVENT_BLOCKS)]
        yield BlocksStored(
            names=names,
            parent=parent,
            token_ids=random.choices(range(_VOCABULARY), k=_EVENT_BLOCKS * BLOCK_TOKENS),
            block_tokens=BLOCK_TOKENS,
            tier=DEVICE,
        )
        parent = names[-1]


def _wire(event: BlocksStored) -> dict[str, object]:
    """Return the event in the form in which vLLM sends it."""
    return {
        "type": "BlockStored",
        "block_hashes": event.names,
        "parent_block_hash": event.parent,
        "token_ids": event.token_ids,
        "block_size": BLOCK_TOKENS,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None] * len(event.names),
        "group_idx": 0,
    }


def _tokens(seed: int) -> Numbers:
    random = seeded(seed)
    return np.array(random.choices(range(_VOCABULARY), k=TOKENS), dtype=np.uint32)


def _prompt(tokens: Numbers) -> TokenPrompt:
    return TokenPrompt(tokens, MODEL)


def _without_result(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        call()

    return run


def _row(name: str, seconds: list[float], scale: float, unit: str, bound: float | None) -> Row:
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] * scale
    return measured(
        name,
        statistics.median(ordered) * scale,
        unit,
        target=None if bound is None else Target("<=", bound),
        note=f"p99 {p99:.3g} {unit} of {len(ordered)}",
    )
